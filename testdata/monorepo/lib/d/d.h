#pragma once

/* This module's name and what it heard from F. */
const char *d_says(void);
