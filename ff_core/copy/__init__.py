"""Python face of the copy engine (ff_core/csrc): arenas, status pages, writer, receiver, sender. Never imports torch.

Every class here is a thin owner of something in C: calls release the GIL, errors are the exceptions of `ff_core.errors`
(bad arguments: EngineError; damaged or incomplete slots: CorruptSlotError; misbehaving peers: ProtocolError) and
TimeoutError.
"""
