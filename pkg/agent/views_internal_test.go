package agent

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/internal/logkit"
	"github.com/compute-agent/compute-agent/internal/logkit/logtest"
	"github.com/compute-agent/compute-agent/pkg/fault"
	"github.com/compute-agent/compute-agent/pkg/rpc"
)

// What is in the way of the views is said once for each cause, until it is gone; a bus
// that is away is said by the connection itself.
func TestViewTroubleIsSaidOnce(t *testing.T) {
	refused := fault.New(fault.Unauthorized, "put", "compute_instances", "no right")
	late := fault.New(fault.Timeout, "put", "compute_instances", "no answer")
	other := fault.New(fault.Timeout, "put", "compute_hosts", "no answer")
	const warns, ends = "warning", "info"
	for _, c := range []struct {
		name string
		errs []error
		want []string
	}{
		{name: "all is well", errs: []error{nil, nil}},
		{name: "the same again and again", errs: []error{refused, refused, refused}, want: []string{warns}},
		{name: "each cause, by kind and subject", errs: []error{refused, late, other, late, refused}, want: []string{warns, warns, warns}},
		{name: "its end, and that it begins again", errs: []error{refused, nil, nil, refused}, want: []string{warns, ends, warns}},
		{name: "the bus is away", errs: []error{rpc.ErrAway, errors.Join(rpc.ErrAway, errors.New("gone")), nil}},
		{name: "an error without a kind", errs: []error{errors.New("odd"), errors.New("odd")}, want: []string{warns}},
	} {
		t.Run(c.name, func(t *testing.T) {
			log, said := logtest.Record(t)
			ctx := logkit.Into(t.Context(), log)
			trouble := newViewTroubles()
			for _, err := range c.errs {
				trouble.write.tell(ctx, err)
			}
			var got []string
			for _, e := range said.Entries() {
				got = append(got, e.Level)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("said (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("the agent stops", func(t *testing.T) {
		log, said := logtest.Record(t)
		ctx, cancel := context.WithCancel(logkit.Into(t.Context(), log))
		cancel()
		newViewTroubles().list.tell(ctx, refused)
		if n := len(said.Entries()); n != 0 {
			t.Errorf("%d lines were said", n)
		}
	})
}
