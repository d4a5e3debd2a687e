#include "lib/f/cpu.h"

const char cpu[] = "x86_64";
