// One end of a UCX connection: a worker and the endpoint to the peer's. Pieces of memory go from the sending port into
// memory that the receiving port names, in the order in which they were sent.
//
// Pieces travel as active messages with rendezvous. The sender announces a piece, and the receiver says where it is to
// lie. Then UCX moves it the best way there is: an RDMA read by the receiver's adapter, straight from slot to slot.
//
// Why not one-sided puts or gets: whoever has a key to an arena's memory could write there after the holder has retired
// the connection. And over software transports UCX's own handler for them trusts any peer's addresses. Why not tagged
// messages: what nobody expects piles up in UCX's memory, whereas the handler here drops it. A piece that is announced
// costs the receiver a few bytes. Data move only into a slot, and only as far as that thread asked for them.
//
// Used by one thread at a time; close() from the last one. Nobody spins: progress(), and when arm() says that there is
// nothing to do, poll(2) on fd(). UCX neither authenticates nor encrypts; pieces carry a token that the two ends agreed
// upon over their authenticated socket, and foreign ones are dropped.
#pragma once
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "transport/ucx_library.h"

namespace ff {

class UcxPort {
 public:
  static constexpr size_t kWindow = 8;  // pieces on their way: announced by the sender, being fetched by the receiver

  // Deletes a port, or puts it aside for good where that would end the process: see is_stuck().
  struct Disposer {
    void operator()(UcxPort* port) const noexcept;
  };
  using Owner = std::unique_ptr<UcxPort, Disposer>;

  // FF_ETRANSPORT: no libucx, too old, or it does not work here; or 64 ports of this process were put aside.
  static Owner open();
  // Makes a port ahead for some later open() of this process, unless there is one for every port in use. Takes
  // milliseconds, which then, when an epoch begins, are saved.
  static void prepare() noexcept;
  ~UcxPort();  // close()
  UcxPort(const UcxPort&) = delete;
  UcxPort& operator=(const UcxPort&) = delete;

  // A connection is made from one side: the other gives its address away, expect()s the peer and connects when it has
  // been greeted. (Both at once is what UCX 1.13's TCP gets wrong when a peer dies meanwhile.)
  const std::vector<uint8_t>& address() const { return address_; }
  void expect(uint64_t token);
  bool greeted() const { return greeted_; }
  void connect(const std::vector<uint8_t>& peers_address, uint64_t token);  // FF_ETRANSPORT: not reachable this way
  // Both sides have heard each other over UCX: the connection is made. Before that no piece may be sent.
  bool connected() const { return endpoint_ != nullptr && greeted_ && greeting_ == nullptr; }
  // Ends all transfers; afterwards UCX touches nobody's memory. Does not wait for the peer. Idempotent. Not while
  // is_stuck().
  void close() noexcept;

  // Handles what has happened; false: nothing had. FF_EIO: the connection has failed.
  bool progress();
  bool arm();  // true: fd() becomes readable when there is something to do
  int fd() const { return fd_; }

  // Announces a piece, which must not change until it is completed.
  void send(const void* data, uint64_t bytes);
  size_t sending() const { return sends_.size(); }
  uint64_t sent() const { return sent_; }  // completed pieces

  // Bytes of the next announced piece; 0: none is.
  uint64_t announced() const { return announced_.empty() ? 0 : announced_.front().bytes; }
  void fetch(void* target);  // the next announced piece
  size_t fetching() const { return fetches_.size(); }
  uint64_t fetched();  // bytes of the oldest piece being fetched if they are there (it then is none any more), or 0

 private:
  struct Announced {
    void* descriptor;
    uint64_t bytes;
  };
  struct Fetch {
    void* request;
    uint64_t bytes;
  };
  struct PieceHeader {
    uint64_t token;
    uint64_t number;
  };
  UcxPort();
  bool is_stuck() const;
  static UcsStatus on_greeting(void* self, const void* header, size_t header_bytes, void* data, size_t bytes,
                               const UcpAmReceived* received);
  static UcsStatus on_piece(void* self, const void* header, size_t header_bytes, void* data, size_t bytes,
                            const UcpAmReceived* received);
  static void on_failure(void* self, void* endpoint, UcsStatus status);
  void handle(unsigned id, UcsStatus (*call)(void*, const void*, size_t, void*, size_t, const UcpAmReceived*));
  void free(void* request);

  const UcxLibrary* ucx_;
  void* worker_ = nullptr;
  void* endpoint_ = nullptr;
  int fd_ = -1;
  std::vector<uint8_t> address_;
  uint64_t token_ = 0;
  bool expecting_ = false;     // the peer connects first
  bool heard_ = false;         // something, of whomever
  bool greeted_ = false;       // by the peer
  void* greeting_ = nullptr;   // to the peer, while it is on its way
  uint64_t next_out_ = 0, next_in_ = 0;  // numbers of pieces
  uint64_t sent_ = 0;
  UcsStatus failure_ = kUcsOk;
  const char* broken_rule_ = nullptr;  // by the peer
  std::deque<PieceHeader> headers_;    // of sends_: UCX may read them until those are completed
  std::deque<void*> sends_;            // oldest first, null: completed at once
  std::deque<Announced> announced_;
  std::deque<Fetch> fetches_;
};

}  // namespace ff
