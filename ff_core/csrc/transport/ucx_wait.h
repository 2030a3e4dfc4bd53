// Waiting for a UCX port and for the socket beside it, which says whether the peer still lives.
//
// A peer that sends without end (or a broken network) can keep a port busy for ever: whoever works it looks at the
// socket now and then all the same, so that shutdown() ends every wait. Deadlines are the caller's, after each turn.
#pragma once
#include "transport/ucx_port.h"

namespace ff {

class UcxWait {
 public:
  static constexpr unsigned kTurns = 16;  // busy ones between two looks at the socket
  static constexpr unsigned kVain = 8;    // sleeps that UCX ended for nothing, one after the other, before a pause

  UcxWait(UcxPort& port, int socket, unsigned look_every = kTurns)
      : port_(port), socket_(socket), look_every_(look_every) {}

  // Does what there is to do; if there is nothing, sleeps until there is, or for `ms` (-1: without limit). FF_EIO: the
  // socket has ended, or UCX lost the peer.
  void turn(int ms);
  // Works until the socket has something to read, or has ended.
  void until_readable();

 private:
  void sleep(int ms);

  UcxPort& port_;
  const int socket_;
  const unsigned look_every_;
  unsigned turns_ = 0;
  unsigned vain_ = 0;
};

}  // namespace ff
