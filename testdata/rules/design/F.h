#pragma once

extern "C" const char *F_says();
