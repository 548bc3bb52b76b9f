// Package tun gives the rest of the program IP packets of a TUN device, in batches.
//
// cmd opens a driver and passes it to the stack. The drivers are: water (the portable one),
// fd (a descriptor that somebody else opened, used by `gatun run`) and pipe (in memory, for
// tests), and offload, which moves TCP packets of up to 64 KiB. Each is a Device. Package
// tun does not look into packets, sets no routes and keeps no state beyond its descriptor.
package tun

import "errors"

// Device reads and writes IP packets without any link-layer header.
//
// Buffers belong to the caller. Read fills bufs[i][:sizes[i]] for i < n and does not keep
// them; every buffer must hold at least MaxPacket bytes. Write sends bufs[0] … bufs[n-1], one
// packet each, and does not keep or change them. One goroutine may call Read and, at the same
// time, one may call Write.
type Device interface {
	// Read blocks until at least one packet is there, then takes as many as are there without
	// blocking again, up to len(bufs). It returns os.ErrClosed after Close.
	Read(bufs [][]byte, sizes []int) (n int, err error)
	// Write returns how many packets the device took. A packet that the kernel refuses is
	// dropped and not an error; an error means that the device is gone.
	Write(bufs [][]byte) (n int, err error)
	// Unsummed tells that packet i of the last Read was never on a wire: its transport checksum
	// is that of the pseudo header only, and nothing can have damaged it. Only the goroutine
	// that calls Read may ask.
	Unsummed(i int) bool
	// WriteLarge sends one TCP packet, given in pieces, that is cut into segments of mss bytes of
	// payload, or sent as it is where mss is 0. network is the length of its IP header, headers
	// that of IP and TCP header; its TCP checksum must be that of the pseudo header. A packet
	// that the kernel refuses is dropped, and taken is false. It is called like Write, by the
	// same goroutine, and only where MaxPacket is larger than MTU.
	WriteLarge(pieces [][]byte, network, headers, mss int) (taken bool, err error)
	// MaxPacket is the largest packet that Read gives: MTU, or more where TCP packets come that
	// are yet to be cut into segments.
	MaxPacket() int
	// MTU is the largest packet in bytes, the IP header included.
	MTU() int
	// Name is the interface's name in its network namespace, "" for a device in memory.
	Name() string
	// BatchSize is the number of buffers that a caller should pass to Read and Write.
	BatchSize() int
	// Close ends blocked calls. It may be called more than once.
	Close() error
}

// noOffload is what a driver has that moves packets as they are on a wire.
type noOffload struct{}

// Unsummed implements Device.
func (noOffload) Unsummed(int) bool { return false }

// WriteLarge implements Device.
func (noOffload) WriteLarge([][]byte, int, int, int) (bool, error) {
	return false, errors.ErrUnsupported
}
