#include <stdio.h>

#include "generated/speed.h"

int main(void) {
    puts(SPEED);
    return 0;
}
