package state

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// The form of bbolt's file, version 2, in the machine's own byte order:
//
//	page     id 8, flags 2, count 2, overflow 4, then count elements, then their keys and values
//	branch   pos 4, key's length 4, page 8
//	leaf     flags 4, pos 4, key's length 4, value's length 4
//	bucket   the value of a leaf with bucketFlag: root page 8, sequence 8; root 0: its one page follows
const (
	pageHead    = 16
	elementHead = 16
	bucketHead  = 16
	branchFlag  = 1
	leafFlag    = 2
	bucketFlag  = 1
	firstPage   = 2 // behind the two heads of the file
)

/*
pages reads the tree of a file and checks what bbolt relies on: each page is where it
should be and is referenced once, each element lies within its page, the keys rise. bbolt
has such a check too, but one that ends the process when the file has no list of free
pages: it gives up its transaction at the first mistake while it still reads by it.
*/
type pages struct {
	file io.ReaderAt
	size int    // of one page
	end  uint64 // the first page that was never used
	seen []bool
}

func newPages(file io.ReaderAt, size int, end uint64) *pages {
	return &pages{file: file, size: size, end: end, seen: make([]bool, end)}
}

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %w", errDamaged, fmt.Errorf(format, args...))
}

// tree checks what is below a page. Its keys are not below low and, unless high is nil,
// below high; root tells the tree of the buckets from that of one bucket.
func (p *pages) tree(id uint64, low, high []byte, root bool) error {
	raw, err := p.read(id)
	if err != nil {
		return err
	}
	switch flags := binary.NativeEndian.Uint16(raw[8:]); flags {
	case branchFlag:
		return p.branch(id, raw, low, high, root)
	case leafFlag:
		return p.leaf(id, raw, low, high, root)
	default:
		return damaged("page %d is of no kind that is read: %#x", id, flags)
	}
}

// read gives a page, with its overflow, that nobody has read yet.
func (p *pages) read(id uint64) ([]byte, error) {
	if id < firstPage || id >= p.end {
		return nil, damaged("page %d is not one of %d", id, p.end)
	}
	head := make([]byte, pageHead)
	if _, err := p.file.ReadAt(head, int64(id)*int64(p.size)); err != nil { //nolint:gosec // below end
		return nil, damaged("page %d: %w", id, err)
	}
	more := uint64(binary.NativeEndian.Uint32(head[12:]))
	if own := binary.NativeEndian.Uint64(head); own != id || more >= p.end-id {
		return nil, damaged("page %d says that it is page %d, with %d more, of %d", id, own, more, p.end)
	}
	for i := id; i <= id+more; i++ {
		if p.seen[i] {
			return nil, damaged("page %d is referenced twice", i)
		}
		p.seen[i] = true
	}
	raw := make([]byte, (more+1)*uint64(p.size))                           //nolint:gosec // positive
	if _, err := p.file.ReadAt(raw, int64(id)*int64(p.size)); err != nil { //nolint:gosec // below end
		return nil, damaged("page %d: %w", id, err)
	}
	return raw, nil
}

// element gives the head of an element and what follows its place.
func element(id uint64, raw []byte, i int) (head, rest []byte, err error) {
	at := pageHead + i*elementHead
	if at+elementHead > len(raw) {
		return nil, nil, damaged("page %d is too short for %d elements", id, i+1)
	}
	return raw[at : at+elementHead], raw[at:], nil
}

// cut gives n bytes of rest from pos on.
func cut(id uint64, rest []byte, pos, n uint64) ([]byte, error) {
	if pos+n > uint64(len(rest)) {
		return nil, damaged("an element of page %d goes beyond it", id)
	}
	return rest[pos : pos+n], nil
}

func (p *pages) branch(id uint64, raw, low, high []byte, root bool) error {
	count := int(binary.NativeEndian.Uint16(raw[10:]))
	if count == 0 {
		return damaged("page %d leads nowhere", id)
	}
	keys, below := make([][]byte, count, count+1), make([]uint64, count)
	for i := range count {
		head, rest, err := element(id, raw, i)
		if err != nil {
			return err
		}
		pos, n := binary.NativeEndian.Uint32(head), binary.NativeEndian.Uint32(head[4:])
		if keys[i], err = cut(id, rest, uint64(pos), uint64(n)); err != nil {
			return err
		}
		below[i] = binary.NativeEndian.Uint64(head[8:])
	}
	if err := rising(id, keys, low, high); err != nil {
		return err
	}
	keys = append(keys, high)
	for i, child := range below {
		if err := p.tree(child, keys[i], keys[i+1], root); err != nil {
			return err
		}
	}
	return nil
}

func (p *pages) leaf(id uint64, raw, low, high []byte, root bool) error {
	keys := make([][]byte, binary.NativeEndian.Uint16(raw[10:]))
	for i := range keys {
		head, rest, err := element(id, raw, i)
		if err != nil {
			return err
		}
		flags, pos := binary.NativeEndian.Uint32(head), uint64(binary.NativeEndian.Uint32(head[4:]))
		n, m := uint64(binary.NativeEndian.Uint32(head[8:])), uint64(binary.NativeEndian.Uint32(head[12:]))
		both, err := cut(id, rest, pos, n+m)
		if err != nil {
			return err
		}
		if keys[i] = both[:n]; n == 0 || (flags == bucketFlag) != root || flags > bucketFlag {
			return damaged("element %d of page %d is not what it should be: flags %#x, %d bytes of key", i, id, flags, n)
		}
		if root {
			if err := p.bucket(id, both[n:]); err != nil {
				return err
			}
		}
	}
	return rising(id, keys, low, high)
}

// bucket checks a bucket, which is the value of an element of page id.
func (p *pages) bucket(id uint64, v []byte) error {
	if len(v) < bucketHead {
		return damaged("a bucket of page %d is cut short", id)
	}
	if root := binary.NativeEndian.Uint64(v); root != 0 {
		return p.tree(root, nil, nil, false)
	}
	if v = v[bucketHead:]; len(v) < pageHead || binary.NativeEndian.Uint16(v[8:]) != leafFlag {
		return damaged("a bucket inside page %d is none", id)
	}
	return p.leaf(id, v, nil, nil, false)
}

// rising checks the order of keys, and their bounds.
func rising(id uint64, keys [][]byte, low, high []byte) error {
	for i, k := range keys {
		if i > 0 && bytes.Compare(keys[i-1], k) >= 0 || i == 0 && bytes.Compare(low, k) > 0 || high != nil && bytes.Compare(k, high) >= 0 {
			return damaged("key %d of page %d, %q, is out of order", i, id, k)
		}
	}
	return nil
}
