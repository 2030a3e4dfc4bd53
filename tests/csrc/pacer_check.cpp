// The pacer on an invented clock: `pacer_check` prints ok.
#include "writer/pacer.h"

#include <cstdio>

#include "check.h"

using ff::Pacer;
constexpr int64_t kMs = 1000 * 1000;
constexpr uint64_t kBytes = 100 << 20;

// Sends one version over a link that takes `ns` for all of it; returns when the last piece left.
int64_t run(Pacer& pacer, int64_t start, int64_t deadline, int64_t ns, bool busy, int64_t* yielded) {
  pacer.begin(kBytes, deadline, start);
  int64_t now = start;
  for (uint64_t sent = 0; sent < kBytes;) {
    const uint64_t piece = std::min(pacer.piece(), kBytes - sent);
    for (Pacer::Verdict verdict; (verdict = pacer.ask(now, [&] { return busy; })).why != Pacer::Why::kGo;) {
      CHECK(verdict.until_ns > now);
      if (verdict.why == Pacer::Why::kYield) *yielded += verdict.until_ns - now;
      now = verdict.until_ns;
    }
    const int64_t started = now;
    now += static_cast<int64_t>(static_cast<double>(ns) * static_cast<double>(piece) / kBytes);
    pacer.sent(piece, started);
    sent += piece;
  }
  return now;
}

int main() {
  int64_t yielded = 0, now = 0;
  Pacer plain(0);
  CHECK(plain.free());
  CHECK(run(plain, 0, 0, 50 * kMs, true, &yielded) <= 50 * kMs);  // without a deadline: at once, busy or not
  CHECK(yielded == 0);

  Pacer limited(200 << 20);  // half a second for it
  CHECK(!limited.free());
  const int64_t took = run(limited, 0, 0, 1 * kMs, false, &yielded);
  CHECK(took >= 480 * kMs && took <= 520 * kMs);

  Pacer paced(0);
  for (int i = 0; i < 3; ++i) {  // the first ones go at once, and teach the speed
    const int64_t end = run(paced, now, now + 500 * kMs, 50 * kMs, true, &yielded);
    CHECK(end - now <= 51 * kMs && yielded == 0);
    paced.acknowledged(end, false);
    now = end + 1000 * kMs;
  }
  int64_t end = run(paced, now, now + 500 * kMs, 50 * kMs, false, &yielded);
  CHECK(end - now > 250 * kMs && end - now <= 500 * kMs);  // evenly, and in time
  CHECK(yielded == 0);
  paced.acknowledged(end, false);

  now = end + 1000 * kMs;
  end = run(paced, now, now + 500 * kMs, 50 * kMs, true, &yielded);  // a collective that never ends
  CHECK(yielded > 300 * kMs);
  CHECK(end - now <= 500 * kMs);  // the deadline in danger overrides the yield
  paced.acknowledged(end, true);

  now = end + 1000 * kMs;
  yielded = 0;
  end = run(paced, now, now + 500 * kMs, 50 * kMs, true, &yielded);  // after a missed one: as fast as it can
  CHECK(yielded == 0 && end - now <= 51 * kMs);
  paced.acknowledged(end, false);

  now = end + 1000 * kMs;
  end = run(paced, now, now - 1, 50 * kMs, true, &yielded);  // a deadline that has passed
  CHECK(yielded == 0 && end - now <= 51 * kMs);
  std::printf("ok\n");
  return 0;
}
