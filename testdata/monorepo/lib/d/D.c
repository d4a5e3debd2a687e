#include "lib/d/d.h"

#include <stdio.h>

#include "lib/f/f.h"

const char *d_says(void) {
    static char text[128];
    snprintf(text, sizeof text, "D > %s", f_says());
    return text;
}
