#include "design/F.h"

extern "C" const char *F_says() { return "F"; }
