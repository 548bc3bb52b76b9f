package tun

import (
	"errors"
	"fmt"
	"os"

	"github.com/songgao/water"
	"golang.org/x/sys/unix"
)

func (o Options) platformParams() water.PlatformSpecificParams {
	return water.PlatformSpecificParams{Name: o.Name, Persist: o.Persist}
}

func openError(name string, err error) error {
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("open %s: %w", name, ErrBusy)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("open %s: %w: CAP_NET_ADMIN and access to /dev/net/tun are needed, run as root", name, err)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("open %s: %w: /dev/net/tun is missing, load the module with `modprobe tun`", name, err)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("open %s: %w: the name is taken by an interface that is not a TUN device of ours", name, err)
	}
	return fmt.Errorf("open %s: %w", name, err)
}

// finish sets MTU and queue length and puts the batching driver on the library's descriptor.
func (o Options) finish(ifc *water.Interface) (Device, error) {
	file, ok := ifc.ReadWriteCloser.(*os.File)
	if !ok {
		ifc.Close()
		return nil, fmt.Errorf("open %s: the TUN library gave %T, not a file", ifc.Name(), ifc.ReadWriteCloser)
	}
	if err := configure(ifc.Name(), o.MTU); err != nil {
		file.Close()
		return nil, fmt.Errorf("set the MTU of %s to %d: %w", ifc.Name(), o.MTU, err)
	}
	d, err := newBatch(file, ifc.Name(), o.MTU)
	if err != nil {
		file.Close()
		return nil, err
	}
	// The library opens without O_CLOEXEC: a helper program started by us would inherit the
	// machine's traffic and keep the device busy.
	if err := d.raw.Control(func(fd uintptr) { unix.CloseOnExec(int(fd)) }); err != nil {
		file.Close()
		return nil, err
	}
	return d, nil
}

// QueueLength is how many packets wait for the reader. The kernel's 500 overflow when many
// sockets of one program send at once, and then the packets of others are lost too.
const QueueLength = 4096

func configure(name string, mtu int) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	for _, set := range []struct {
		request uint
		value   uint32
	}{{unix.SIOCSIFMTU, uint32(mtu)}, {unix.SIOCSIFTXQLEN, QueueLength}} {
		ifr, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		ifr.SetUint32(set.value)
		if err := unix.IoctlIfreq(s, set.request, ifr); err != nil {
			return err
		}
	}
	return nil
}
