#include "lib/e/e.h"

#include <stdio.h>

#include "lib/f/f.h"

const char *e_says(void) {
    static char text[128];
    snprintf(text, sizeof text, "E > %s", f_says());
    return text;
}
