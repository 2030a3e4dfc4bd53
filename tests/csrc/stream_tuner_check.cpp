// The choice of streams on invented speeds: `stream_tuner_check` prints ok.
#include "transport/stream_tuner.h"

#include <cstdio>
#include <functional>

#include "check.h"

using ff::StreamTuner;
constexpr uint64_t kBytes = 200 << 20;
using Machine = std::function<double(size_t streams)>;  // GB/s

void version(StreamTuner& tuner, const Machine& machine) {
  const double speed = machine(tuner.streams());
  tuner.sent(kBytes, static_cast<int64_t>(static_cast<double>(kBytes) / speed));
}

// How many versions it takes to settle.
int settle(StreamTuner& tuner, const Machine& machine) {
  int versions = 0;
  for (; !tuner.settled() && versions < 100; ++versions) version(tuner, machine);
  return versions;
}

const Machine scales = [](size_t streams) { return 3.0 * static_cast<double>(streams); };
const Machine copy_is_the_limit = [](size_t streams) { return std::min(12.0, 3.3 * static_cast<double>(streams)); };
const Machine one_is_enough = [](size_t streams) { return streams == 1 ? 5.0 : 5.2; };
const Machine fewer_are_faster = [](size_t streams) { return 8.0 / static_cast<double>(streams); };

void chooses() {
  struct Case {
    const Machine& machine;
    size_t most, chosen;
  };
  for (const Case& one : {Case{scales, 8, 8}, Case{copy_is_the_limit, 8, 4}, Case{one_is_enough, 8, 1},
                          Case{fewer_are_faster, 8, 1}, Case{scales, 3, 3}, Case{one_is_enough, 3, 1},
                          Case{scales, 16, 16}}) {
    StreamTuner tuner(one.most, false);
    CHECK(tuner.streams() == one.most);  // nothing is known: all of them
    const int versions = settle(tuner, one.machine);
    CHECK(tuner.streams() == one.chosen);
    CHECK(versions <= StreamTuner::kWarm + 5 * StreamTuner::kSamples);
    for (int i = 0; i < 1000; ++i) {
      version(tuner, one.machine);
      CHECK(tuner.settled() && tuner.streams() == one.chosen);
    }
  }
}

// Hopeless numbers are not tried: with all of them 12, with half of them 4, and one would be slower still.
void gives_up_early() {
  StreamTuner tuner(8, false);
  bool one_tried = false;
  settle(tuner, [&](size_t streams) {
    one_tried = one_tried || streams < 4;
    return streams == 8 ? 12.0 : 4.0;
  });
  CHECK(!one_tried && tuner.streams() == 8);
}

// One bad measurement of two changes nothing, nor do single slow versions afterwards.
void is_not_shaken() {
  StreamTuner tuner(4, false);
  int count = 0;
  settle(tuner, [&](size_t streams) { return ++count % 2 == 1 ? 0.5 : scales(streams); });
  CHECK(tuner.streams() == 4);
  for (int i = 0; i < 2000; ++i) {
    version(tuner, i % StreamTuner::kInARow == 0 ? scales : Machine([](size_t) { return 1.0; }));
    CHECK(tuner.settled());
  }
}

// Quite another speed for long: it learns anew, and the next time not before twice as long.
void learns_anew() {
  StreamTuner tuner(4, false);
  settle(tuner, one_is_enough);
  CHECK(tuner.streams() == 1);
  int until = 0;
  for (; tuner.settled(); ++until) version(tuner, [](size_t) { return 1.0; });
  CHECK(until == StreamTuner::kHold);
  settle(tuner, scales);
  CHECK(tuner.streams() == 4);
  for (until = 0; tuner.settled(); ++until) version(tuner, [](size_t) { return 100.0; });
  CHECK(until == 2 * StreamTuner::kHold);
}

// Small versions and those held back say nothing. While some are, all streams are used.
void waits_for_what_says_something() {
  StreamTuner tuner(4, false);
  for (int i = 0; i < 100; ++i) tuner.sent(StreamTuner::kLeastBytes - 1, 1000);
  CHECK(tuner.streams() == 4 && !tuner.settled());
  for (int i = 0; i < StreamTuner::kWarm + StreamTuner::kSamples; ++i) version(tuner, one_is_enough);
  CHECK(tuner.streams() == 2);
  tuner.held_back();
  CHECK(tuner.streams() == 4);
  version(tuner, one_is_enough);
  CHECK(tuner.streams() == 2);  // goes on where it was
  settle(tuner, one_is_enough);
  CHECK(tuner.streams() == 1);
  tuner.held_back();
  CHECK(tuner.settled() && tuner.streams() == 1);
}

void fixed() {
  for (const size_t most : {1, 4}) {
    StreamTuner tuner(most, true);
    CHECK(tuner.settled());
    for (int i = 0; i < 200; ++i) version(tuner, one_is_enough);
    CHECK(tuner.settled() && tuner.streams() == most);
  }
  CHECK(StreamTuner(1, false).settled());
}

int main() {
  chooses();
  gives_up_early();
  is_not_shaken();
  learns_anew();
  waits_for_what_says_something();
  fixed();
  std::puts("ok");
  return 0;
}
