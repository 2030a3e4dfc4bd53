// A connection as the C interface gives it, and the transports that are made of it.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "base/fd.h"
#include "ff_engine.h"
#include "transport/transport.h"

namespace ff {

class GivenConnection {
 public:
  // Takes the descriptors over: what is not made into a transport is closed. Checks nothing yet.
  explicit GivenConnection(const ff_connection* given);

  // FF_EINVAL: a transport that does not exist, or descriptors that it has no use for.
  // arena: the sender's, mapped.  timeout_ms: for Transport::connect().
  std::unique_ptr<Transport> sender(const void* arena, int64_t timeout_ms);
  Streams receivers();  // stream 0 first
  size_t copiers() const { return copiers_; }  // threads of the receiver, at least 1

 private:
  enum class Kind { kTcp, kShm, kUcx };
  Kind checked() const;

  const bool given_;
  const std::string transport_;
  std::vector<UniqueFd> sockets_;
  const UniqueFd peers_file_;
  const size_t copiers_;
  const uint32_t fewer_;
};

}  // namespace ff
