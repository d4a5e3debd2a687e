#include "lib/c/c.h"

#include <stdio.h>

#include "lib/e/e.h"

const char *c_says(void) {
    static char text[128];
    snprintf(text, sizeof text, "C > %s", e_says());
    return text;
}
