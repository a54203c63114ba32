// The convolutions with a clock in every part; one thread only.
#define LCMT_PARTS
#include "kernels.cpp"

// Seconds of each part since the last call of this.
extern "C" void lcmt_parts(double* seconds) {
  for (int part = 0; part < int(Part::count); ++part) {
    seconds[part] = part_seconds[part];
    part_seconds[part] = 0;
  }
}
