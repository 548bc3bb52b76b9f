package sandbox

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// featureNameLen is ETH_GSTRING_LEN, featureSet is ETH_SS_FEATURES (linux/ethtool.h).
const (
	featureNameLen = 32
	featureSet     = 4
)

// segmentOnlyTCP makes the kernel cut everything but TCP into packets before it leaves the
// interface: a packet socket can be told about TCP only.
func segmentOnlyTCP(name string) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	names, err := featureNames(s, name)
	if err != nil {
		return fmt.Errorf("the names of its features: %w", err)
	}
	blocks := (len(names) + 31) / 32
	// struct ethtool_sfeatures: for each 32 features which of them to set, and to what.
	set := make([]byte, 8+8*blocks)
	binary.NativeEndian.PutUint32(set, unix.ETHTOOL_SFEATURES)
	binary.NativeEndian.PutUint32(set[4:], uint32(blocks))
	for i, n := range names {
		if segments(n) {
			at := set[8+8*(i/32):]
			binary.NativeEndian.PutUint32(at, binary.NativeEndian.Uint32(at)|1<<(i%32))
		}
	}
	return ethtool(s, name, set)
}

// segments reports whether a feature cuts anything but TCP.
func segments(feature string) bool {
	switch feature {
	case "tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-generic-segmentation":
		return false
	}
	return strings.HasPrefix(feature, "tx-") && strings.HasSuffix(feature, "-segmentation") || feature == "tx-gso-list"
}

func featureNames(s int, name string) ([]string, error) {
	// struct ethtool_sset_info with room for one count.
	info := make([]byte, 20)
	binary.NativeEndian.PutUint32(info, unix.ETHTOOL_GSSET_INFO)
	binary.NativeEndian.PutUint64(info[8:], 1<<featureSet)
	if err := ethtool(s, name, info); err != nil {
		return nil, err
	}
	n := int(binary.NativeEndian.Uint32(info[16:]))
	// struct ethtool_gstrings
	list := make([]byte, 12+n*featureNameLen)
	binary.NativeEndian.PutUint32(list, unix.ETHTOOL_GSTRINGS)
	binary.NativeEndian.PutUint32(list[4:], featureSet)
	binary.NativeEndian.PutUint32(list[8:], uint32(n))
	if err := ethtool(s, name, list); err != nil {
		return nil, err
	}
	names := make([]string, n)
	for i := range names {
		text, _, _ := bytes.Cut(list[12+i*featureNameLen:][:featureNameLen], []byte{0})
		names[i] = string(text)
	}
	return names, nil
}

// ethtool makes one request of SIOCETHTOOL; the answer is in data.
func ethtool(s int, name string, data []byte) error {
	var ifr struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(ifr.name[:unix.IFNAMSIZ-1], name)
	ifr.data = unsafe.Pointer(&data[0])
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifr)))
	runtime.KeepAlive(data)
	if errno != 0 {
		return errno
	}
	return nil
}
