/* ff_engine: the copy engine's C interface (loaded by ctypes, so one build serves every Python and every torch).
 *
 * What it is: moves one rank's state between live tensors, slots (memory files) and sockets, in chunks, with CRC32C.
 *   writer    in a worker: live tensors -> own slot -> holders. Owns its threads.
 *   receiver  in an agent: socket -> slot of a replica (or of a newcomer's own arena). One thread per stream.
 *   sender    in an agent: complete slot -> socket (re-replication, filling a newcomer's arena).
 *   restore   slot -> live tensors, checksums verified before the first byte is written to any live tensor.
 *   words     64-bit stamps in a status page shared by processes, with futex waits.
 *
 * Every function returns 0 or a negative FF_E* code; ff_last_error() gives the calling thread's message with context.
 * Blocking calls have a deadline in milliseconds, never negative. *_close, *_cancel, *_detach and *_retire_before join
 * threads.
 * docs/thread_model.md and docs/wire_format.md say the rest.
 */
#ifndef FF_ENGINE_H
#define FF_ENGINE_H
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

enum {
  FF_OK = 0,
  FF_EINVAL = -1,
  FF_ETIMEOUT = -2,
  FF_ECANCELLED = -3,
  FF_ECORRUPT = -4,
  FF_EIO = -5,
  FF_EPROTO = -6,
  FF_ENOSPACE = -7,
  FF_EHALTED = -8,
  FF_EINTERNAL = -9,
  FF_EDEVICE = -10,   /* CUDA: not there, or it reported an error */
  FF_ETRANSPORT = -11 /* the transport asked for cannot be had, here or with this peer */
};

const char* ff_last_error(void);
const char* ff_build_info(void); /* JSON: compiler, crc implementation, cuda, transports */
const char* ff_interface(void);  /* the fingerprint (build.py) of the file that this is, when it was built */
uint32_t ff_crc32c(uint32_t crc, const void* data, size_t bytes);

/* ---- random numbers ---- */
/* Moves a generator of torch's on the host on by `count` numbers of 32 bits, without making them. state: what its
   get_state() gives; changed in place. FF_EINVAL: it is none. */
int ff_torch_generator_skip(void* state, uint64_t bytes, uint64_t count);

/* ---- memory files ---- */
/* Allocates a new memory file of `bytes` from the front as huge pages, as far as the kernel has any at hand: best effort,
   *huge says how many bytes. The rest is still to be allocated. Takes about as long as zeroing, and is given up where it
   takes longer. A child of this process does it. FF_EIO: no mapping. */
int ff_memory_huge(int fd, uint64_t bytes, uint64_t* huge);
/* A shared read-write mapping, aligned so that huge pages are mapped as such. */
int ff_memory_map(int fd, uint64_t bytes, void** base);
int ff_memory_unmap(void* base, uint64_t bytes);

/* ---- arena: header page | journal | slot 0 | slot 1; position-independent, lives in a memfd ---- */
typedef struct {
  uint32_t rank;
  uint32_t slots;            /* 2 (to 16); 1 in a file that holds one version */
  uint64_t sent_bytes;       /* prefix of the payload that replicas hold (UNIQUE tensors) */
  uint64_t local_bytes;      /* rest of the payload, own slot only (REPLICATED tensors); 0 in a replica's arena */
  uint64_t blob_capacity;    /* scalars, bytes */
  uint64_t journal_capacity; /* init journal, bytes */
  uint64_t chunk_bytes;      /* multiple of 4096 */
} ff_arena_layout;

uint64_t ff_arena_bytes(const ff_arena_layout* layout); /* total size to allocate, page multiple; 0: bad layout */
int ff_arena_format(void* base, uint64_t bytes, const ff_arena_layout* layout);
int ff_arena_check(const void* base, uint64_t bytes, ff_arena_layout* out); /* FF_ECORRUPT if not an arena */

enum { FF_SLOT_EMPTY = 0, FF_SLOT_WRITING = 1, FF_SLOT_COMPLETE = 2 };
/* Of a slot that is not complete only `state` is certain. */
typedef struct {
  uint32_t state;
  uint64_t epoch;
  int64_t version;
  uint64_t payload_bytes; /* filled prefix of the payload */
  uint64_t blob_bytes;
  uint32_t full;          /* payload_bytes is all of the payload. 0: the version arrived over a socket in an arena with
                             local_bytes > 0; segments of the local part cannot be restored from it */
  uint32_t checksummed;
} ff_slot_info;

int ff_slot_info_get(const void* base, uint32_t slot, ff_slot_info* out); /* FF_ECORRUPT: complete, header damaged */
int ff_slot_restamp(void* base, uint32_t slot, uint64_t epoch);           /* complete slots only */
int ff_slot_empty(void* base, uint32_t slot);
int ff_slot_verify(const void* base, uint32_t slot); /* all checksums; FF_ECORRUPT names the chunk */
/* The complete version of a slot into a slot of another arena of the same rank, which nobody else uses; all checksums are
   verified. The local part goes along where both arenas have it. Somebody may write the first slot meanwhile:
   FF_ECANCELLED then, FF_ECORRUPT if it is damaged; after an error the second slot is empty. */
int ff_slot_copy(const void* from, uint32_t from_slot, void* to, uint32_t to_slot);
int ff_slot_blob(const void* base, uint32_t slot, const void** data, uint64_t* bytes);
int ff_slot_corrupt(void* base, uint32_t slot, uint64_t payload_offset); /* fault injection: flips one payload bit */
int ff_journal_set(void* base, const void* data, uint64_t bytes);
int ff_journal_get(const void* base, const void** data, uint64_t* bytes); /* bytes 0: none yet; FF_ECORRUPT */

/* ---- segments: a live tensor's bytes and their place in the payload ---- */
typedef struct {
  void* ptr;
  uint64_t bytes;
  uint64_t offset;
  int32_t device; /* -1: host, else the CUDA device on which ptr lies; one device in all of a writer's segments */
  int32_t reserved;
} ff_segment;

/* Verifies all, then copies. FF_ECORRUPT: nothing was written. Segments on a CUDA device: waits until the device is
   idle before the first byte, for what was launched may still write them, and returns when the bytes are there. */
int ff_slot_restore(const void* base, uint32_t slot, const ff_segment* segments, size_t count);

/* ---- status page: shared by one worker and its agent ---- */
typedef struct {
  uint64_t magic;
  uint64_t w_stamp;      /* agent: newest version committed by every rank */
  uint64_t halt_epoch;   /* agent: the epoch that a halt announced; workers compare with their own */
  uint64_t committed;    /* engine: newest stamp complete in the own slot and acknowledged by every holder */
  uint64_t own_complete; /* engine: newest stamp complete in the own slot */
  uint64_t sealed;       /* worker */
  uint64_t live;         /* worker: stamp of whole live tensors; 0 while they change */
  uint64_t progress;     /* worker: counts collectives, steps and seals; for the hang detector */
  uint64_t activity;     /* worker: 0 user code, 1 collective, 2 at the gate, 3 in the inner step, 4 recovering */
  uint64_t interval;     /* agent, before w_stamp: iterations from the next copied version to the one after it */
  uint64_t pause;        /* agent, before w_stamp: 1 if ranks stop behind the next copied version */
  uint32_t futex;        /* bumped and woken by ff_page_notify */
  uint32_t pad;
} ff_status_page;

uint64_t ff_page_load(const uint64_t* word);
void ff_page_store(uint64_t* word, uint64_t value);
void ff_page_notify(ff_status_page* page); /* agent: after storing w_stamp or halt_epoch */
/* Waits until halt_epoch > epoch (FF_EHALTED, looked at first), w_stamp >= stamp (FF_OK) or FF_ETIMEOUT. */
int ff_page_wait_w(ff_status_page* page, uint64_t stamp, uint64_t epoch, int64_t timeout_ms);

/* ---- life: a worker's death, known to its agent before its memory is torn down; see life.cpp ---- */
typedef struct ff_life_watch ff_life_watch;
int ff_life_init(ff_status_page* page);    /* agent, when the page is made */
int ff_life_hold(ff_status_page* page);    /* worker, in the thread whose end is the process's: the main thread */
int ff_life_release(ff_status_page* page); /* the same thread: what comes now is an orderly end, not a death */
/* agent, after the hold: rings notify_fd (duplicated) once if the holder dies; nothing happens after a release. */
int ff_life_watch_open(ff_status_page* page, int notify_fd, ff_life_watch** out);
int ff_life_watch_close(ff_life_watch* watch); /* joins; up to half a second while the holder lives */

/* ---- connection: sockets that are connected and authenticated (Python does that), and how data travel ---- */
/* The engine owns the descriptors from the call on that is given them, also when the call fails. */
enum { FF_MAX_STREAMS = 16 };
typedef struct {
  const int* fds; /* its streams, in the same order on both sides. "tcp": 1 to FF_MAX_STREAMS, the others have one */
  size_t count;
  /* As in the configuration.
     "tcp": over the sockets, which may be of any kind.
     "shm": between processes of one host, over a Unix socket; the receiver has the memory file of the sender's arena.
     "ucx": through UCX; both sides must say so. */
  const char* transport;
  int peers_file; /* "shm", receiver: the memory file of the sender's arena, sealed against shrinking. It is only read.
                     Otherwise -1 */
  uint32_t copiers; /* "shm", receiver: threads that copy, at most FF_MAX_STREAMS; 0: one. Otherwise 0 */
  uint32_t fewer;   /* "tcp", writer: 1: carry versions over as few of the streams as the first ones have shown to be
                       nearly as fast. 0: over all of them */
} ff_connection;

/* ---- writer (worker) ---- */
typedef struct ff_writer ff_writer;
typedef struct {
  void* arena; /* mapped own arena */
  uint64_t arena_bytes;
  ff_status_page* page;           /* may be NULL (tests) */
  int notify_fd;                  /* eventfd rung after each commit and lost holder; -1: none. Duplicated. */
  uint64_t bandwidth_bytes_per_s; /* per holder; 0: unlimited */
  int32_t checksum;               /* 1: CRC32C, 0: none (debugging) */
  int32_t stall_timeout_ms;       /* a holder that takes no byte and acknowledges nothing so long is lost; 0: 30000 */
} ff_writer_options;

int ff_writer_open(const ff_writer_options* options, ff_writer** out);
/* Opens `device` and begins to pin the slots for it, before there are tensors. Segments on another one undo that. Nothing
   may be in flight. */
int ff_writer_prepare(ff_writer* w, int32_t device);
/* Offsets as in the payload. Nothing may be in flight. */
int ff_writer_set_segments(ff_writer* w, const ff_segment* segments, size_t count);
/* A holder's connection. The journal (if any) is sent ahead of the next version, and ahead of later ones when it changed.
   Only while no version is in flight. A holder whose connection breaks is remembered as lost: versions stay uncommitted
   (in flight) until the next cancel. "ucx" waits until the two have found each other, at most timeout_ms; FF_ETRANSPORT:
   they cannot. FF_ECANCELLED: a cancel came meanwhile; it ends the wait at once. */
int ff_writer_add_holder(ff_writer* w, const ff_connection* connection, int64_t timeout_ms);
int ff_writer_clear_holders(ff_writer* w);
/* Copies live tensors into `slot` from the engine's own threads and streams UNIQUE bytes to holders. Returns at once. The
   next version may begin, in another slot, while this one is still being sent; it must be sealed by then. FF_EINVAL: slot
   in flight, stamp not newer than the last one's, no segments. FF_ECANCELLED: a cancel is under way.
   stream: of segments on a CUDA device (a CUstream; NULL: the legacy default stream). What is on it up to here makes the
   version; the copy begins behind it, on streams of the engine's own. The CPU does not wait. */
int ff_writer_begin(ff_writer* w, uint32_t slot, uint64_t epoch, int64_t version, void* stream);
/* Versions that begin from now on are to be acknowledged within so many microseconds after there was something to copy
   (on a CUDA device: when the step had run there); until then they are sent evenly, and not while the page's `activity`
   says that a collective runs, or one of those below is in flight. 0 (at first): as soon as possible. */
int ff_writer_set_window(ff_writer* w, uint64_t window_us);
/* Versions that begin from now on wait up to hold_us microseconds before anything of them is put on a CUDA device's
   streams, until ff_writer_go(). Then their downloads are spread evenly over spread_us. A ff_writer_device_wait() of them
   ends both. 0 (at first): they do not wait; as fast as the device can. Host tensors never wait. */
int ff_writer_set_downloads(ff_writer* w, uint64_t hold_us, uint64_t spread_us);
/* Versions that are held go on. Any thread. */
int ff_writer_go(ff_writer* w);
/* A collective that runs on the device of the segments, by itself, long after it was launched. begin: it comes next,
   behind what is on `stream` so far. end: it is behind what is on `stream` (perhaps another one) so far, which makes
   later ends nothing. forget: it is over, or nobody will know when. Any thread, the device is not waited for. *ticket =
   0: there is no such device, or a cancel came meanwhile; end and forget do nothing with it. FF_EDEVICE. */
int ff_writer_collective_begin(ff_writer* w, void* stream, uint64_t* ticket);
int ff_writer_collective_end(ff_writer* w, uint64_t ticket, void* stream);
int ff_writer_collective_forget(ff_writer* w, uint64_t ticket);
/* Stream a slot that is complete as (epoch, version) to all holders (after a verdict and its re-stamp). Returns at once;
   commits like begin+seal. Checksums are verified on the way: a damaged slot is never committed, see ff_writer_check. */
int ff_writer_resend(ff_writer* w, uint32_t slot, uint64_t epoch, int64_t version);
int ff_writer_seal(ff_writer* w, int64_t version, const void* blob, uint64_t bytes); /* copies blob; returns at once */
/* Returns when live tensors may change again. FF_ECANCELLED: the version was cancelled (they may change, too). */
int ff_writer_wait_copied(ff_writer* w, int64_t version, int64_t timeout_ms);
/* Later work on `stream` may change the live tensors: it runs when they have been copied. Waits for the engine's threads
   (until the copies are on the device's queues and host segments are read), not for the device; where all segments are
   on the host it is wait_copied. Errors as there. */
int ff_writer_device_wait(ff_writer* w, int64_t version, void* stream, int64_t timeout_ms);
/* *ended = 1: what was on the stream when `version` began has run, so the live tensors hold it. 0: not yet. Whoever
   aborts a collective that a step is in asks before. Always 1 for host segments and for versions not in flight. */
int ff_writer_step_ended(ff_writer* w, int64_t version, int32_t* ended);
/* FF_OK, or why versions in flight cannot commit: FF_EIO and others for a lost holder, FF_ECORRUPT for a damaged slot. */
int ff_writer_check(ff_writer* w);
/* Abandons everything in flight, closes holder connections, and returns when no engine thread touches tensors, slots or
   sockets. From any thread, also while others are in the calls above. The writer can be used again. */
int ff_writer_cancel(ff_writer* w);
/* versions: committed.  cpu_ns: of the engine's threads.  ack_wait_ns: last byte sent to acknowledgement.
   yielded_ns, paced_ns: sending held back for a collective; to be even or within the bandwidth.  deadlines: versions
   acknowledged that had one, deadlines_missed: too late.  zero_copy_bytes: of bytes_sent, left the slot without the
   kernel's copying them. streams: that carry versions now. All of these summed over holders. */
typedef struct {
  uint64_t versions, bytes_copied, bytes_sent, copy_ns, send_ns, ack_wait_ns, cpu_ns;
  uint64_t holders, holders_lost;
  uint64_t yielded_ns, paced_ns, deadlines, deadlines_missed, zero_copy_bytes, streams;
} ff_writer_stats;
int ff_writer_stats_get(ff_writer* w, ff_writer_stats* out);
int ff_writer_close(ff_writer* w); /* cancel + free */

/* ---- receiver (agent) ---- */
typedef struct ff_receiver ff_receiver;
/* notify_fd: eventfd rung after every completed version, journal or ended connection; -1: none. Duplicated. */
int ff_receiver_open(int notify_fd, ff_receiver** out);
/* A connection for one arena, which must stay mapped until the connection is joined. Frames of another epoch than
   `epoch`, of another rank or of another layout close it. The receiver keeps the newest complete version and overwrites
   another slot. An older connection for the same arena is closed and joined first. FF_EINVAL: `epoch` is retired. */
int ff_receiver_attach(ff_receiver* r, const ff_connection* connection, void* arena, uint64_t arena_bytes,
                       uint64_t epoch, uint64_t* connection_id);
/* Closes and joins the connection of the arena mapped at `arena`: call it before unmapping. */
int ff_receiver_detach(ff_receiver* r, const void* arena);
/* Closes and joins every connection whose epoch is < `epoch`; afterwards none of them touches an arena. A later
   attach with an epoch < `epoch` fails with FF_EINVAL. */
int ff_receiver_retire_before(ff_receiver* r, uint64_t epoch);
typedef struct {
  uint64_t connection_id;
  uint64_t last_stamp; /* newest version completed over this connection, 0: none */
  uint64_t bytes;      /* received, over all streams */
  uint64_t journals;   /* init journals received */
  int32_t open;
  int32_t error; /* what ended it; FF_OK: the peer closed between versions */
  char message[192];
} ff_receiver_status;
/* All connections. One that has ended is reported once and then forgotten. */
int ff_receiver_poll(ff_receiver* r, ff_receiver_status* out, size_t capacity, size_t* count);
int ff_receiver_close(ff_receiver* r);

/* ---- sender (agent): one complete slot (and the journal) to a peer's receiver ---- */
/* Blocks: call it from a thread of its own. Frames carry `epoch`, which must be the slot's. Returns when the peer has
   acknowledged. FF_ECORRUPT: a checksum did not match here. FF_ETRANSPORT: the peer cannot be reached through UCX.
   shutdown(2) on duplicates of the descriptors ends it early. */
int ff_send_slot(const ff_connection* connection, const void* arena, uint64_t arena_bytes, uint32_t slot,
                 uint64_t epoch, int64_t timeout_ms);

/* ---- UCX, found at run time ---- */
/* FF_OK: loaded (once and for all) and usable. FF_ETRANSPORT: ff_last_error says what is missing. */
int ff_ucx_check(void);
/* Ports of RDMA devices that are up, as "mlx5_0:1 mlx5_1:1", "" without any. root: /sys/class/infiniband, but in tests.
   Valid until the calling thread's next call. */
const char* ff_rdma_ports(const char* root);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
