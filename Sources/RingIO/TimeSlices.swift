internal import CLinux

/// Time slices of 0.1 ms for the calling thread where the scheduler would give it 1.4 ms or more:
/// on a busy machine a loop gets the processor sooner, and a thread that makes memory resident or
/// reserves space keeps loops and clients from it for less long at a time.
func requestShortTimeSlices() {
    // If refused (by a filter of system calls), latencies on a busy machine are longer.
    _ = cl_request_short_slices(100_000)
}
