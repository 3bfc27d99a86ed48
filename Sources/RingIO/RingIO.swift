// RingIO
