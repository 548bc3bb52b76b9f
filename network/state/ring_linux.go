package state

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ring reads a ring buffer of the hooks (BPF_MAP_TYPE_RINGBUF) without a system call. Its reader in
// github.com/cilium/ebpf waits before it looks.
type ring struct {
	ready *readable

	mu       sync.Mutex
	closed   bool
	consumer []byte // our position, which the kernel reads
	producer []byte // the kernel's, and behind it the data, mapped twice in a row
	size     uint64
}

// Bits of the length in front of a record.
const (
	ringBusy    = 1 << 31
	ringDiscard = 1 << 30
	ringHeader  = 8
)

func openRing(fd int, size int) (*ring, error) {
	page := os.Getpagesize()
	consumer, err := unix.Mmap(fd, 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map ring buffer: %w", err)
	}
	producer, err := unix.Mmap(fd, int64(page), page+2*size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map ring buffer: %w", err), unix.Munmap(consumer))
	}
	ready, err := openReadable(fd)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("wait for ring buffer: %w", err), unix.Munmap(consumer), unix.Munmap(producer))
	}
	return &ring{ready: ready, consumer: consumer, producer: producer, size: uint64(size)}, nil
}

func (r *ring) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	return errors.Join(r.ready.f.Close(), unix.Munmap(r.consumer), unix.Munmap(r.producer))
}

func position(page []byte) *uint64 { return (*uint64)(unsafe.Pointer(&page[0])) }

// next returns the record at our position, nil if it is not there yet, and the position behind it. r.mu is
// held.
func (r *ring) next() (sample []byte, behind uint64) {
	at := atomic.LoadUint64(position(r.consumer))
	if at >= atomic.LoadUint64(position(r.producer)) {
		return nil, at
	}
	data := r.producer[os.Getpagesize():]
	from := at & (r.size - 1)
	length := atomic.LoadUint32((*uint32)(unsafe.Pointer(&data[from])))
	if length&ringBusy != 0 {
		return nil, at
	}
	n := uint64(length &^ ringDiscard)
	behind = at + (n+ringHeader+7)&^7
	if length&ringDiscard != 0 {
		return []byte{}, behind
	}
	return data[from+ringHeader : from+ringHeader+n], behind
}

// drain passes the records that are there, outside of the lock.
func (r *ring) drain(each func(sample []byte)) {
	for {
		batch := r.take()
		for _, b := range batch {
			each(b)
		}
		if len(batch) < ringBatch {
			return
		}
	}
}

const ringBatch = 64

// take takes some records out.
func (r *ring) take() (batch [][]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for !r.closed && len(batch) < ringBatch {
		sample, behind := r.next()
		if sample == nil {
			break
		}
		if len(sample) > 0 {
			batch = append(batch, append([]byte(nil), sample...))
		}
		atomic.StoreUint64(position(r.consumer), behind)
	}
	return batch
}

// empty reports whether nothing is on its way to us: what is being written may not wake anybody any more.
func (r *ring) empty() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closed || atomic.LoadUint64(position(r.consumer)) >= atomic.LoadUint64(position(r.producer))
}

// wait waits until the hooks wake this process.
func (r *ring) wait() error { return r.ready.wait() }

// interrupt ends every wait.
func (r *ring) interrupt() { _ = r.ready.f.SetReadDeadline(time.Unix(1, 0)) }
