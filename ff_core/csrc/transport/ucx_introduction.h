// How two UCX ports come to know each other, over the authenticated socket of their connection.
//
// The sender's ADDRESS frame has its port's address and a random token, the receiver's answer has its own address and
// the same token (docs/wire_format.md). Then the sender connects, and the receiver once it has been greeted over UCX.
// Errors: FF_ETRANSPORT, one of the two cannot do it or UCX finds no way between them (the text says what was tried and
// what to do); FF_EIO, the peer is gone, or shutdown() of the socket; FF_ETIMEOUT, FF_EPROTO.
#pragma once
#include <memory>

#include "transport/tcp.h"
#include "transport/ucx_port.h"

namespace ff {

// The sender's side: a connected port.
UcxPort::Owner introduce(TcpTransport& socket, int64_t timeout_ms);

// The receiver's side; null: the peer closed before it had sent anything.
UcxPort::Owner answer(TcpTransport& socket);

}  // namespace ff
