// Package tun gives the rest of the program IP packets of a TUN device, in batches.
//
// cmd opens a driver and passes it to the stack. The drivers are: water (the portable one),
// fd (a descriptor that somebody else opened, used by `gatun run`) and pipe (in memory, for
// tests). Each is a Device; a driver for segmentation offload takes the same place. Package
// tun does not look into packets, sets no routes and keeps no state beyond its descriptor.
package tun

// Device reads and writes IP packets without any link-layer header.
//
// Buffers belong to the caller. Read fills bufs[i][:sizes[i]] for i < n and does not keep
// them; every buffer must hold at least MTU bytes. Write sends bufs[0] … bufs[n-1], one
// packet each, and does not keep or change them. One goroutine may call Read and, at the same
// time, one may call Write.
type Device interface {
	// Read blocks until at least one packet is there, then takes as many as are there without
	// blocking again, up to len(bufs). It returns os.ErrClosed after Close.
	Read(bufs [][]byte, sizes []int) (n int, err error)
	// Write returns how many packets the device took. A packet that the kernel refuses is
	// dropped and not an error; an error means that the device is gone.
	Write(bufs [][]byte) (n int, err error)
	// MTU is the largest packet in bytes, the IP header included.
	MTU() int
	// Name is the interface's name in its network namespace, "" for a device in memory.
	Name() string
	// BatchSize is the number of buffers that a caller should pass to Read and Write.
	BatchSize() int
	// Close ends blocked calls. It may be called more than once.
	Close() error
}
