"""C++ sources of the copy engine (interface: ff_engine.h) and their build."""
