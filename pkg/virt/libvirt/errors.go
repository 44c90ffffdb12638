package libvirt

import (
	"context"
	"errors"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/compute-agent/compute-agent/pkg/fault"
)

var (
	// errGone is the loss of a connection while a call was on it or waited for it.
	errGone = errors.New("the connection to libvirt was lost")
	// errBound is the end of a call's own bound.
	errBound = errors.New("libvirt did not answer in time")
	// errSlots is a wait for a free place on a connection that took too long.
	errSlots = errors.New("all calls that a connection may carry are in use")
	// errClosed is what a closed driver answers.
	errClosed = errors.New("the driver is closed")
)

// kinds maps libvirt's error numbers; what is not here is internal.
// The numbers are those of libvirt's virterror.h.
var kinds = map[golibvirt.ErrorNumber]fault.Kind{ //nolint:exhaustive // the rest is internal
	golibvirt.ErrNoDomain:         fault.NotFound, // 42
	golibvirt.ErrNoStoragePool:    fault.NotFound, // 49
	golibvirt.ErrNoStorageVol:     fault.NotFound, // 50
	golibvirt.ErrNoDomainMetadata: fault.NotFound, // 80
	golibvirt.ErrDeviceMissing:    fault.NotFound, // 99

	golibvirt.ErrDomExist:             fault.Conflict, // 28
	golibvirt.ErrOperationInvalid:     fault.Conflict, // 55: wrong state, no job, job of another kind
	golibvirt.ErrOperationUnsupported: fault.Conflict, // 84: not with this domain
	golibvirt.ErrBlockCopyActive:      fault.Conflict, // 83
	golibvirt.ErrAgentUnresponsive:    fault.Conflict, // 86: the guest's agent, not libvirt
	golibvirt.ErrResourceBusy:         fault.Conflict, // 87
	golibvirt.ErrAgentUnsynced:        fault.Conflict, // 97
	golibvirt.ErrAgentCommandTimeout:  fault.Conflict, // 112
	golibvirt.ErrAgentCommandFailed:   fault.Conflict, // 113

	golibvirt.ErrOperationTimeout: fault.Timeout,   // 68: another job holds the domain
	golibvirt.ErrOperationAborted: fault.Cancelled, // 78

	golibvirt.ErrInvalidArg:          fault.InvalidArgument, // 8
	golibvirt.ErrXMLError:            fault.InvalidArgument, // 27
	golibvirt.ErrXMLDetail:           fault.InvalidArgument, // 35
	golibvirt.ErrConfigUnsupported:   fault.InvalidArgument, // 67
	golibvirt.ErrArgumentUnsupported: fault.InvalidArgument, // 74
	golibvirt.ErrXMLInvalidSchema:    fault.InvalidArgument, // 92

	golibvirt.ErrMigrateUnsafe:   fault.PreconditionFailed, // 81
	golibvirt.ErrCPUIncompatible: fault.PreconditionFailed, // 91

	golibvirt.ErrOperationDenied: fault.Unauthorized, // 29
	golibvirt.ErrAuthFailed:      fault.Unauthorized, // 45
	golibvirt.ErrAuthCancelled:   fault.Unauthorized, // 79
	golibvirt.ErrAccessDenied:    fault.Unauthorized, // 88
	golibvirt.ErrAuthUnavailable: fault.Unauthorized, // 94

	golibvirt.ErrNoConnect:   fault.Unavailable, // 5
	golibvirt.ErrInvalidConn: fault.Unavailable, // 6
	golibvirt.ErrRPC:         fault.Unavailable, // 39
}

// fromLibvirt gives any error of a call its place and kind. libvirt's number is
// kept in details.libvirt_code.
func fromLibvirt(err error, op, subject string) error {
	if err == nil {
		return nil
	}
	if _, known := errors.AsType[*fault.Error](err); known {
		return fault.Wrap(err, op, subject)
	}
	if lv, ok := errors.AsType[golibvirt.Error](err); ok {
		kind, ok := kinds[golibvirt.ErrorNumber(lv.Code)] //nolint:gosec // libvirt's numbers are small
		if !ok {
			kind = fault.Internal
		}
		return fault.New(kind, op, subject, lv.Message).WithDetail("libvirt_code", lv.Code).Because(nil)
	}
	return fromTransport(err, op, subject)
}

func fromTransport(err error, op, subject string) error {
	switch {
	case errors.Is(err, errBound), errors.Is(err, context.DeadlineExceeded):
		return fault.New(fault.Timeout, op, subject, "").Because(err).
			WithHint("the call may still take effect; see whether libvirtd and the guest's QEMU answer (virsh domjobinfo, virsh list)")
	case errors.Is(err, errSlots):
		return fault.New(fault.Timeout, op, subject, "").Because(err).
			WithHint("other calls are slow; see libvirtd's log, or raise calls_per_connection together with max_client_requests of libvirtd")
	case errors.Is(err, context.Canceled):
		return fault.New(fault.Cancelled, op, subject, "").Because(err)
	case errors.Is(err, golibvirt.ErrUnsupported):
		return fault.New(fault.Internal, op, subject, "").Because(err).
			WithHint("this libvirt is too old for the call; 7.0 or newer is needed")
	default:
		return fault.New(fault.Unavailable, op, subject, "").Because(err).
			WithHint("see whether libvirtd runs (systemctl status libvirtd) and whether this user may use its socket")
	}
}

// isCode reports whether err came from libvirt with this number.
func isCode(err error, n golibvirt.ErrorNumber) bool {
	if lv, ok := errors.AsType[golibvirt.Error](err); ok {
		return lv.Code == uint32(n) //nolint:gosec // libvirt's numbers are small
	}
	code, ok := fault.DetailsOf(err)["libvirt_code"].(uint32)
	return ok && code == uint32(n) //nolint:gosec // libvirt's numbers are small
}
