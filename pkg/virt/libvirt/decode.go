package libvirt

import (
	"encoding/binary"
	"errors"
	"math"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"

	"github.com/compute-agent/compute-agent/pkg/virt"
)

// The procedures that carry events, by libvirt's remote_protocol.x.
const (
	procLifecycle    = 318
	procReboot       = 319
	procIteration    = 359
	procJobCompleted = 363
)

// maxParams bounds a list of typed parameters (libvirt: 64 for job statistics).
const maxParams = 4096

var errShort = errors.New("the packet is too short for what it should hold")

// decodeEvent reads one event; ok is false for a kind that is not wanted or a
// body that can't be read.
func decodeEvent(procedure uint32, body []byte) (ev virt.Event, ok bool) {
	r := &reader{rest: body}
	r.int32() // the callback's id: one subscription per kind, so the procedure says it all
	ev.Domain = r.domain()
	switch procedure {
	case procLifecycle:
		kind, detail := r.int32(), r.int32()
		ev.Kind, ev.Reason, ok = lifecycle(kind, detail)
	case procReboot:
		ev.Kind, ok = virt.EventRebooted, true
	case procIteration:
		ev.Kind, ev.Iteration, ok = virt.EventIteration, uint64(max(r.int32(), 0)), true
	case procJobCompleted:
		job := jobOf(virt.JobCompleted, r.params())
		ev.Kind, ev.Job, ok = virt.EventJobCompleted, &job, true
	}
	return ev, ok && r.err == nil
}

// reader reads XDR (RFC 4506): big-endian words, everything padded to four bytes.
// The first error stays; what is read after it is zero.
type reader struct {
	rest []byte
	err  error
}

func (r *reader) take(n int) []byte {
	padded := (n + 3) &^ 3
	if r.err != nil || n < 0 || padded > len(r.rest) {
		r.err = errShort
		return nil
	}
	out := r.rest[:n]
	r.rest = r.rest[padded:]
	return out
}

func (r *reader) uint32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) int32() int32 { return int32(r.uint32()) } //nolint:gosec // XDR's int

func (r *reader) uint64() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (r *reader) string() string {
	n := r.uint32()
	if n > maxPacket {
		r.err = errShort
		return ""
	}
	return string(r.take(int(n)))
}

// domain reads a remote_nonnull_domain and gives its UUID.
func (r *reader) domain() string {
	r.string() // name
	var id uuid.UUID
	copy(id[:], r.take(len(id)))
	r.int32() // id
	return id.String()
}

// params reads a list of typed parameters.
func (r *reader) params() []golibvirt.TypedParam {
	n := r.uint32()
	if n > maxParams {
		r.err = errShort
		return nil
	}
	out := make([]golibvirt.TypedParam, 0, n)
	for range n {
		name := r.string()
		v, ok := r.value()
		if r.err != nil || !ok {
			r.err = errors.Join(r.err, errShort)
			return nil
		}
		out = append(out, golibvirt.TypedParam{Field: name, Value: v})
	}
	return out
}

func (r *reader) value() (v golibvirt.TypedParamValue, ok bool) {
	v.D = r.uint32()
	switch golibvirt.TypedParameterType(v.D) { //nolint:gosec // seven small numbers
	case golibvirt.TypedParamInt, golibvirt.TypedParamBoolean:
		v.I = r.int32()
	case golibvirt.TypedParamUint:
		v.I = r.uint32()
	case golibvirt.TypedParamLlong:
		v.I = int64(r.uint64()) //nolint:gosec // XDR's hyper
	case golibvirt.TypedParamUllong:
		v.I = r.uint64()
	case golibvirt.TypedParamDouble:
		v.I = math.Float64frombits(r.uint64())
	case golibvirt.TypedParamString:
		v.I = r.string()
	default:
		return v, false
	}
	return v, true
}
