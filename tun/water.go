package tun

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"github.com/songgao/water"
)

// DefaultMTU is the MTU of a device when Options.MTU is 0.
const DefaultMTU = 1500

// ErrBusy says that another process already holds the device.
var ErrBusy = errors.New("the device is in use by another process: is gatun already running?")

// ErrGone says that the device was deleted under the driver. It is fatal: a new device has to
// be opened and the routes have to be set again.
var ErrGone = errors.New("the TUN device is gone: somebody deleted it")

// Options say which device Options.Open creates or attaches to.
type Options struct {
	// Name is the interface's name. Linux takes it as it is, Windows uses it to find the
	// adapter, darwin only accepts utunN and picks a number for every other name.
	Name string
	// MTU is set on the device (Linux) or assumed (elsewhere); 0 means DefaultMTU.
	MTU int
	// Persist leaves the device in place when the process ends, however it ends (Linux
	// only). With `up` that is what keeps a crash closed: without a device the routes into it
	// vanish and traffic leaks. An existing device of that name is attached to either way;
	// without Persist the attachment also clears the flag, so that Close removes the device.
	Persist bool
	// Portable takes the portable driver where a faster one could be had: for comparison.
	Portable bool
}

// Open opens the device name with the given MTU, not persistent. See Options for the rest.
func Open(name string, mtu int) (Device, error) {
	return Options{Name: name, MTU: mtu}.Open()
}

// Open creates the device, or attaches to the persistent one of that name, through the offloading
// driver where the system has one, else through the portable one. It does not bring the link up
// and gives it no address.
func (o Options) Open() (Device, error) {
	if o.MTU == 0 {
		o.MTU = DefaultMTU
	}
	if o.MTU < 68 || o.MTU > 65535 {
		return nil, fmt.Errorf("mtu %d: want 68 to 65535", o.MTU)
	}
	if !o.Portable {
		if d, err := o.openLarge(); err == nil || !errors.Is(err, errors.ErrUnsupported) {
			return d, err
		}
	}
	ifc, err := water.New(water.Config{DeviceType: water.TUN, PlatformSpecificParams: o.platformParams()})
	if err != nil {
		return nil, openError(o.Name, err)
	}
	return o.finish(ifc)
}

// single is the driver of last resort: one packet per call, on top of whatever the portable
// library gives.
type single struct {
	noOffload
	rwc    io.ReadWriteCloser
	name   string
	mtu    int
	closed atomic.Bool
}

func (d *single) MTU() int       { return d.mtu }
func (d *single) MaxPacket() int { return d.mtu }
func (d *single) Name() string   { return d.name }
func (d *single) BatchSize() int { return 1 }

func (d *single) Read(bufs [][]byte, sizes []int) (int, error) {
	if len(bufs) == 0 {
		return 0, nil
	}
	n, err := d.rwc.Read(bufs[0])
	switch {
	case d.closed.Load():
		return 0, os.ErrClosed
	case err != nil:
		return 0, fmt.Errorf("read from %s: %w", d.name, err)
	}
	sizes[0] = n
	return 1, nil
}

// Write drops the packets the system refuses: a write error alone does not tell a bad packet
// from a lost device, the next Read does.
func (d *single) Write(bufs [][]byte) (int, error) {
	taken := 0
	for _, b := range bufs {
		if d.closed.Load() {
			return taken, os.ErrClosed
		}
		if _, err := d.rwc.Write(b); err == nil {
			taken++
		}
	}
	return taken, nil
}

func (d *single) Close() error {
	if d.closed.Swap(true) {
		return nil
	}
	return d.rwc.Close()
}
