#include "lib/f/cpu.h"

const char cpu[] = "some other processor";
