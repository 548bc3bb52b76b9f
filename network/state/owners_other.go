//go:build !linux

package state

import "gatun/network/packet"

// Owners is not available here.
type Owners struct{}

// OpenOwners fails with ErrNoHooks.
func OpenOwners(OwnersOptions) (*Owners, error) {
	return nil, noHooks("they are a part of Linux")
}

// Close does nothing.
func (*Owners) Close() error { return nil }

// Sender finds nobody.
func (*Owners) Sender(packet.Flow) (s Sender, found bool) { return s, false }

// Image knows nothing.
func (*Owners) Image(ImageID) (*Image, bool) { return nil, false }
