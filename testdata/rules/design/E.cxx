#include <string>

#include "design/F.h"

extern "C" const char *E_says() {
    static const std::string text = std::string("E > ") + F_says();
    return text.c_str();
}
