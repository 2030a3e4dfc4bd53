// A library that is loaded at run time, because not every machine has it.
#pragma once
#include <dlfcn.h>

#include <memory>
#include <mutex>
#include <string>

namespace ff {

// Fills in pointers to the functions of a loaded library.
class Symbols {
 public:
  explicit Symbols(void* library) : library_(library) {}

  template <class Function>
  void get(const char* name, Function* out) {
    *out = reinterpret_cast<Function>(::dlsym(library_, name));
    if (*out == nullptr && missing_.empty()) missing_ = name;
  }
  const std::string& missing() const { return missing_; }  // the first name that the library lacks; empty: none

 private:
  void* const library_;
  std::string missing_;
};

// `load` returns the functions of a library, or null and why not. It is called until it has found them, by one thread at
// a time, and never again: later calls give what it found.
template <class Library>
const Library* found_once(std::unique_ptr<const Library> (*load)(std::string* why), std::string* why) {
  static std::mutex mutex;
  static std::unique_ptr<const Library> found;
  const std::lock_guard<std::mutex> lock(mutex);
  if (found == nullptr) found = load(why);
  return found.get();
}

}  // namespace ff
