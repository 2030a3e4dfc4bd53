#include "base/error.h"

#include <cstdio>
#include <cstring>

namespace ff {
namespace {

// A fixed buffer: reporting an error must not need memory.
thread_local char last_error[1024] = "";

std::string format_text(const char* format, va_list arguments) {
  char text[960];
  std::vsnprintf(text, sizeof text, format, arguments);
  return text;
}

}  // namespace

void raise(int code, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::string text = format_text(format, arguments);
  va_end(arguments);
  throw Error(code, std::move(text));
}

void raise_errno(int error, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::string text = format_text(format, arguments);
  va_end(arguments);
  char buffer[128];
  text += ": ";
  text += strerror_r(error, buffer, sizeof buffer);  // the GNU variant returns the text
  throw Error(FF_EIO, std::move(text));
}

int report(int code, const char* text) noexcept {
  std::snprintf(last_error, sizeof last_error, "%s", text);
  return code;
}

}  // namespace ff

extern "C" const char* ff_last_error(void) {
  return ff::last_error;
}
