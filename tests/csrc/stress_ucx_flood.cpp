// A sender that floods its holder over UCX with messages that nobody expects.
#include <atomic>
#include <deque>

#include "checksum/crc32c.h"
#include "stress_setup.h"
#include "transport/tcp.h"
#include "transport/ucx_library.h"

namespace {

constexpr uint64_t kToken = 0x6e656b6f74;

// Its own UCX worker, connected to the holder's; used by one thread at a time.
class Flooder {
 public:
  explicit Flooder(int socket) : ucx_(*ff::find_ucx(&why_)), socket_(ff::UniqueFd(socket)) {
    ff::UcpWorkerParams params{};
    params.field_mask = ff::UcpWorkerParams::kThreadMode;
    params.thread_mode = ff::UcpWorkerParams::kSerialized;
    CHECK(ucx_.worker_create(ff::ucx_context(ucx_), &params, &worker_) == ff::kUcsOk);
    ff::UcpAmHandler handler{};
    handler.field_mask = ff::UcpAmHandler::kAll;
    handler.id = 71;
    handler.call = on_greeting;
    handler.argument = this;
    CHECK(ucx_.set_am_handler(worker_, &handler) == ff::kUcsOk);
    connect(exchange_addresses());
    eventually([&] {
      ucx_.worker_progress(worker_);
      return greeted_;
    });
  }
  ~Flooder() {
    ff::UcpRequestParam param{};
    param.field_mask = ff::UcpRequestParam::kFlags;
    param.flags = ff::UcpRequestParam::kForce;
    void* closing = ucx_.ep_close(endpoint_, &param);
    const auto finish = [&](void* request) {
      if (!ff::is_request(request)) return;
      while (ucx_.request_status(request) == ff::kUcsInProgress) ucx_.worker_progress(worker_);
      ucx_.request_free(request);
    };
    finish(closing);
    for (void* request : sent_) finish(request);
    ucx_.worker_destroy(worker_);
  }

  // False: the holder has ended its end.
  bool send(uint64_t token) {
    token_ = token;
    const ff::UcpRequestParam plain{};
    void* request = ucx_.am_send(endpoint_, 71, &token_, sizeof token_, data_, sizeof data_, &plain);
    if (ff::is_request(request)) sent_.push_back(request);
    ucx_.worker_progress(worker_);
    while (!sent_.empty() && ucx_.request_status(sent_.front()) != ff::kUcsInProgress) {
      ucx_.request_free(sent_.front());
      sent_.pop_front();
    }
    return !failed_ && (ff::is_request(request) || ff::status_of(request) >= 0);
  }
  // Whether the holder has taken all that was sent.
  bool taken() {
    ucx_.worker_progress(worker_);
    return sent_.empty() || ucx_.request_status(sent_.back()) != ff::kUcsInProgress;
  }
  void frame(ff::FrameHeader header, const void* data) {
    if (data != nullptr) header.data_crc = ff::crc32c(0, data, header.length);
    seal_frame(header);
    const ff::Patience patience{60000, ff::Deadline::never()};
    socket_.start(header, patience);
    socket_.data(data, data != nullptr ? header.length : 0, patience);
  }

 private:
  static ff::UcsStatus on_greeting(void* self, const void*, size_t, void*, size_t, const ff::UcpAmReceived*) {
    static_cast<Flooder*>(self)->greeted_ = true;
    return ff::kUcsOk;
  }
  std::vector<uint8_t> exchange_addresses() {
    void* address = nullptr;
    size_t bytes = 0;
    CHECK(ucx_.worker_address(worker_, &address, &bytes) == ff::kUcsOk);
    std::vector<uint8_t> body(sizeof kToken + bytes);
    std::memcpy(body.data(), &kToken, sizeof kToken);
    std::memcpy(body.data() + sizeof kToken, address, bytes);
    ucx_.worker_release_address(worker_, address);
    ff::FrameHeader header = ff::make_frame(ff::FrameType::kAddress, 0, 0, -1);
    header.length = body.size();
    frame(header, body.data());
    CHECK(socket_.next(&header) && header.type == static_cast<uint16_t>(ff::FrameType::kAddress));
    body.resize(header.length);
    socket_.take(body.data(), body.size(), false);
    return {body.begin() + sizeof kToken, body.end()};
  }
  void connect(const std::vector<uint8_t>& address) {
    ff::UcpEpParams params{};
    params.field_mask = ff::UcpEpParams::kAddress | ff::UcpEpParams::kErrorMode | ff::UcpEpParams::kErrorHandler;
    params.address = address.data();
    params.error_mode = ff::UcpEpParams::kPeer;
    params.error_handler.call = [](void* self, void*, ff::UcsStatus) { static_cast<Flooder*>(self)->failed_ = true; };
    params.error_handler.argument = this;
    CHECK(ucx_.ep_create(worker_, &params, &endpoint_) == ff::kUcsOk);
    CHECK(send(kToken));
  }

  std::string why_;
  const ff::UcxLibrary& ucx_;
  ff::TcpTransport socket_;
  void* worker_ = nullptr;
  void* endpoint_ = nullptr;
  uint64_t token_ = 0;
  uint8_t data_[1024] = {};
  std::deque<void*> sent_;
  bool greeted_ = false, failed_ = false;
};

}  // namespace

// The holder works them off while it waits for a frame (a sender's UCX may wait for that); and retire_before ends its
// connection at once, whether it waits for a frame or for a CHUNK's data, and whatever comes meanwhile.
void ucx_flood(Random& random) {
  Setup s(random);
  for (uint64_t epoch = 1; epoch <= 6; ++epoch) {
    const Pair pair = connect_pair(epoch % 2 == 0);
    attach(s.receiver, over(pair.far, "ucx"), s.holder0, epoch);
    Flooder flooder(pair.near);
    for (int i = 0; i < 20000; ++i) CHECK(flooder.send(i));
    eventually([&] { return flooder.taken(); });
    if (epoch % 3 != 0) {  // into the middle of a version
      const ff::BeginBody body{kSent, kChunk};
      ff::FrameHeader header = ff::make_frame(ff::FrameType::kBegin, 7, epoch, 0);
      header.flags = 1;  // with checksums
      header.length = sizeof body;
      flooder.frame(header, &body);
      header = ff::make_frame(ff::FrameType::kChunk, 7, epoch, 0);
      header.length = kChunk;
      flooder.frame(header, nullptr);
    }
    std::atomic<bool> retired{false};
    std::thread flood([&] {
      for (uint64_t token = 0; !retired && flooder.send(token); ++token) {
      }
    });
    sleep_us(random.below(20000));
    OK(ff_receiver_retire_before(s.receiver, epoch + 1));
    retired = true;
    flood.join();
  }
}
