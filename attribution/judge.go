package attribution

import "slices"

// image is what one process runs: the facts that Find hands out, and what tells two images of
// the same binary apart. It is immutable.
type image struct {
	process *Process
	start   uint64    // clock ticks since boot
	layout  [4]uint64 // code, stack, arguments, end of environment: random at each exec, kept by fork
}

// environEnd is the place in image.layout that the kernel fills last: 0 in the middle of exec.
const environEnd = 3

// sameProgram reports whether a and b are one program: the same binary that runs with the same
// arguments or, because programs rewrite their arguments for ps(1), with the same memory
// layout, which only a fork without exec can have. Two scripts of one interpreter are not.
func sameProgram(a, b *image) bool {
	if a.process.Path != b.process.Path || a.process.Path == "" {
		return false
	}
	return slices.Equal(a.process.Args, b.process.Args) ||
		(a.layout == b.layout && a.layout != [4]uint64{})
}

// judge names the owner of a flow whose sockets are held by these processes, all of them (see
// docs/decisions/0002-shared-sockets.md). sockets is how many sockets share the address.
func judge(holders []*image, sockets, self int) Owner {
	if len(holders) == 0 {
		return Unidentified(CauseNoHolder)
	}
	if len(holders) == 1 {
		return single(holders[0], self)
	}
	if sockets > 1 {
		return ambiguous(CauseManySockets)
	}
	for _, h := range holders[1:] {
		if !sameProgram(holders[0], h) {
			return ambiguous(CauseShared)
		}
	}
	first := eldest(holders)
	if first.process.PID == self {
		// A child of ours between fork and exec.
		return single(first, self)
	}
	return Owner{Process: first.process, Confidence: Inherited, Cause: CauseInherited}
}

// single is the owner of a socket that one process holds.
func single(h *image, self int) Owner {
	if h.process.PID != self {
		return Owner{Process: h.process, Confidence: Exact, Cause: CauseOne}
	}
	own := *h.process
	own.Kind = KindSelf
	return Owner{Process: &own, Confidence: Exact, Cause: CauseSelf}
}

// ambiguous is the unidentified owner of a socket that more than one program may have used.
func ambiguous(cause string) Owner {
	o := Unidentified(cause)
	o.Confidence = Ambiguous
	return o
}

// eldest returns the holder that the others descend from, or the one that started first where
// the common ancestor no longer holds the socket.
func eldest(holders []*image) *image {
	first := holders[0]
	for _, h := range holders[1:] {
		older := h.start < first.start || (h.start == first.start && h.process.PID < first.process.PID)
		if first.process.Parent == h.process.PID || (older && h.process.Parent != first.process.PID) {
			first = h
		}
	}
	return first
}
