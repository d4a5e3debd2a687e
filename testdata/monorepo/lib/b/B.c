#include "lib/b/b.h"

#include <stdio.h>

#include "lib/d/d.h"

const char *b_says(void) {
    static char text[128];
    snprintf(text, sizeof text, "B > %s", d_says());
    return text;
}
