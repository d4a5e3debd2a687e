#include "lib/f/f.h"

#include <stdio.h>

#include "lib/f/cpu.h"

const char *f_says(void) {
    static char text[64];
    snprintf(text, sizeof text, "F on %s", cpu);
    return text;
}
