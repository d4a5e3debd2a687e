#pragma once

/* This module's name and what it heard from D. */
const char *b_says(void);
