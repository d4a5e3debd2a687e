#pragma once

/* This module's name and the processor it was built for. */
const char *f_says(void);
