#include <string>

#include "design/F.h"

extern "C" const char *D_says() {
    static const std::string text = std::string("D > ") + F_says();
    return text.c_str();
}
