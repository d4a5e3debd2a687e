#include "lib/f/cpu.h"

const char cpu[] = "aarch64";
