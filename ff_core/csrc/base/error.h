// Errors inside the engine are exceptions that carry an FF_E* code; the C interface turns them into a return code and
// the calling thread's message (ff_last_error). No exception crosses the C interface or leaves a thread.
#pragma once
#include <cstdarg>
#include <exception>
#include <string>
#include <utility>

#include "ff_engine.h"

namespace ff {

class Error : public std::exception {
 public:
  Error(int code, std::string text) : code_(code), text_(std::move(text)) {}
  int code() const noexcept { return code_; }
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  int code_;
  std::string text_;
};

// Throws Error with a printf-formatted message.
[[noreturn]] void raise(int code, const char* format, ...) __attribute__((format(printf, 2, 3)));

// As raise, and appends the text of errno.
[[noreturn]] void raise_errno(int error, const char* format, ...) __attribute__((format(printf, 2, 3)));

// Stores the calling thread's message and returns `code`.
int report(int code, const char* text) noexcept;

// Runs `body`; returns its code (bodies return int), or the code of what it threw.
template <class Body>
int guarded(Body&& body) noexcept {
  try {
    return body();
  } catch (const Error& error) {
    return report(error.code(), error.what());
  } catch (const std::exception& error) {
    return report(FF_EINTERNAL, error.what());
  } catch (...) {
    return report(FF_EINTERNAL, "unknown C++ exception");
  }
}

}  // namespace ff
