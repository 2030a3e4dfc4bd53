#include "transport/given_connection.h"

#include "base/error.h"
#include "transport/shm.h"
#include "transport/striped.h"
#include "transport/tcp.h"
#include "transport/ucx.h"

namespace ff {

GivenConnection::GivenConnection(const ff_connection* given)
    : given_(given != nullptr),
      transport_(given_ && given->transport != nullptr ? given->transport : ""),
      sockets_(given_ ? own(given->fds, given->count) : std::vector<UniqueFd>()),
      peers_file_(given_ ? given->peers_file : -1),
      copiers_(given_ && given->copiers > 0 ? given->copiers : 1),
      fewer_(given_ ? given->fewer : 0) {}

GivenConnection::Kind GivenConnection::checked() const {
  if (!given_) raise(FF_EINVAL, "connection is null");
  const char* const name = transport_.c_str();
  const Kind kind = transport_ == "tcp" ? Kind::kTcp : transport_ == "shm" ? Kind::kShm : Kind::kUcx;
  if (kind == Kind::kUcx && transport_ != "ucx") {
    raise(FF_EINVAL, "a connection over \"%s\", known are tcp, shm and ucx", name);
  }
  const int most = kind == Kind::kTcp ? FF_MAX_STREAMS : 1;
  if (sockets_.empty() || sockets_.size() > static_cast<size_t>(most)) {
    raise(FF_EINVAL, "a connection of %zu streams, allowed are 1 to %d over %s", sockets_.size(), most, name);
  }
  if (kind != Kind::kShm && peers_file_.get() >= 0) raise(FF_EINVAL, "a peer's memory file, but not over shm: %s", name);
  const size_t copiers = kind == Kind::kShm ? FF_MAX_STREAMS : 1;
  if (copiers_ > copiers) raise(FF_EINVAL, "%zu threads that copy, at most %zu over %s", copiers_, copiers, name);
  if (fewer_ > 1 || (fewer_ == 1 && kind != Kind::kTcp)) raise(FF_EINVAL, "fewer streams is %u over %s", fewer_, name);
  return kind;
}

std::unique_ptr<Transport> GivenConnection::sender(const void* arena, int64_t timeout_ms) {
  const Kind kind = checked();
  if (kind == Kind::kShm) return std::make_unique<ShmSender>(std::move(sockets_[0]), arena);
  if (kind == Kind::kUcx) return std::make_unique<UcxSender>(std::move(sockets_[0]), timeout_ms);
  if (sockets_.size() > 1) return std::make_unique<StripedSender>(std::move(sockets_), fewer_ == 1);
  return std::make_unique<TcpTransport>(std::move(sockets_[0]), TcpTransport::Slots::kZeroCopy);
}

Streams GivenConnection::receivers() {
  const Kind kind = checked();
  Streams streams;
  for (UniqueFd& socket : sockets_) {
    if (kind == Kind::kShm) {
      streams.push_back(std::make_unique<ShmReceiver>(std::move(socket), peers_file_));
    } else if (kind == Kind::kUcx) {
      streams.push_back(std::make_unique<UcxReceiver>(std::move(socket)));
    } else {
      streams.push_back(std::make_unique<TcpTransport>(std::move(socket)));
    }
  }
  return streams;
}

}  // namespace ff
