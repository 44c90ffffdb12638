package migration

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

func look(at time.Duration, remaining uint64) *Snapshot {
	return &Snapshot{Elapsed: at, Permitted: 150 * time.Millisecond, Job: virt.Job{Memory: instance.Amount{Remaining: remaining}, Throttle: 20}}
}

// A day at half a second a look stays bounded, in order, from the begin to the end.
func TestTimelineIsBounded(t *testing.T) {
	line := timeline{}
	var last time.Duration
	for i := range 2 * 24 * 3600 {
		last = time.Duration(i) * 500 * time.Millisecond
		line.add(look(last, 1000), &Decision{Action: ActNone})
		if len(line.kept) > keepMoments {
			t.Fatalf("%d moments, at most %d are kept", len(line.kept), keepMoments)
		}
	}
	moments := line.moments()
	n := len(moments)
	if n < keepMoments/3 || moments[0].AtMS != 0 {
		t.Fatalf("%d moments from %d ms on, want the whole of it", n, moments[0].AtMS)
	}
	if cap(line.kept) > keepMoments {
		t.Errorf("room for %d moments, at most %d are kept", cap(line.kept), keepMoments)
	}
	for i := 1; i < n; i++ {
		if moments[i].AtMS <= moments[i-1].AtMS {
			t.Fatalf("moment %d at %d ms after %d ms", i, moments[i].AtMS, moments[i-1].AtMS)
		}
	}
	if gap := last - time.Duration(moments[n-1].AtMS)*time.Millisecond; gap > line.every {
		t.Errorf("the last moment is %v old, they are %v apart", gap, line.every)
	}
}

func TestTimelineKeepsDecisions(t *testing.T) {
	line := timeline{}
	for i := range 3 * keepMoments {
		d := Decision{Action: ActNone}
		switch i {
		case 1:
			d = Decision{Action: ActSetDowntime, Downtime: 300 * time.Millisecond}
		case 150:
			d = Decision{Action: ActAbort, Reason: "stalled"}
		}
		line.add(look(time.Duration(i)*time.Second, 5), &d)
	}
	var seen []instance.Moment
	for _, m := range line.moments() {
		if m.Action != "" {
			seen = append(seen, m)
		}
	}
	if len(seen) != 2 || seen[0].PermittedMS != 300 || seen[1].Reason != "stalled" || throttled(line.moments()) != 20 {
		t.Errorf("decisions kept: %+v, want both", seen)
	}
	crowd := timeline{}
	for i := range 3 * keepMoments {
		crowd.add(look(time.Duration(i)*time.Second, 5), &Decision{Action: ActPause})
	}
	kept := crowd.moments()
	if len(kept) != keepMoments || kept[keepMoments-1].AtMS != int64(3*keepMoments-1)*1000 {
		t.Errorf("of decisions alone %d are kept, the last at %d ms", len(kept), kept[len(kept)-1].AtMS)
	}
}

// What is kept once for many moments is each moment's own when it is written out.
func TestTimelineKeepsWhatShifts(t *testing.T) {
	line := timeline{}
	at := func(i int) *Snapshot {
		s := look(time.Duration(i)*time.Second, uint64(10*i))
		s.Permitted, s.Job.Iteration, s.Job.Throttle = time.Duration(i/40)*time.Millisecond, uint64(i/7), i/100%90
		return s
	}
	for i := range 5000 {
		d := Decision{Action: ActNone}
		if i%700 == 699 {
			d = Decision{Action: ActPause, Reason: time.Duration(i).String()}
		}
		line.add(at(i), &d)
		if i%97 != 0 {
			continue
		}
		for _, m := range line.moments() {
			n := int(m.AtMS / 1000)
			s := at(n)
			want := instance.Moment{
				AtMS: m.AtMS, RemainingBytes: uint64(10 * n), PermittedMS: s.Permitted.Milliseconds(), Iteration: s.Job.Iteration, ThrottlePercent: s.Job.Throttle,
			}
			if n%700 == 699 {
				want.Action, want.Reason = string(ActPause), time.Duration(n).String()
			}
			if m != want {
				t.Fatalf("after %d looks %+v, want %+v", i, m, want)
			}
		}
	}
}

// A timeline that is taken up after a restart is thinned out as if nothing had happened.
func TestTimelineGoesOnAfterARestart(t *testing.T) {
	const beat = 500 * time.Millisecond
	for _, before := range []time.Duration{0, 10 * time.Second, time.Minute, 5 * time.Minute, 2 * time.Hour, 20 * time.Hour} {
		line := timeline{}
		at := time.Duration(0)
		beats := func(l *timeline, from, to time.Duration) {
			for at = from; at < to; at += beat {
				d := Decision{Action: ActNone}
				if at == 20*time.Second || at == 30*time.Minute {
					d = Decision{Action: ActSetDowntime, Downtime: time.Second}
				}
				l.add(look(at, 1000), &d)
			}
		}
		beats(&line, 0, before)
		again := restored(line.moments())
		if again.every != line.every {
			t.Errorf("after %v the moments are %v apart, when taken up %v", before, line.every, again.every)
		}
		beats(&line, before, before+20*time.Minute)
		beats(&again, before, before+20*time.Minute)
		if diff := cmp.Diff(line.moments(), again.moments()); diff != "" {
			t.Errorf("taken up after %v it became another one:\n%s", before, diff)
		}
	}
}

// What was given out is not changed by what comes after it.
func TestTimelineGivesCopies(t *testing.T) {
	line := timeline{}
	line.add(look(0, 1), &Decision{Action: ActNone})
	given := line.moments()
	for i := range 2 * keepMoments {
		line.add(look(time.Duration(i+1)*time.Second, 2), &Decision{Action: ActPause})
	}
	if len(given) != 1 || given[0].RemainingBytes != 1 {
		t.Errorf("what was given out is now %+v", given)
	}
}

// The destination's word on the downtime takes nothing else from what is known.
func TestDowntimeIsAddedToTheResult(t *testing.T) {
	rec := Record{}
	rec.Migration.Result = &instance.Result{Bytes: 5, DowntimeMS: 1}
	r := newRun(&Source{ports: SourcePorts{Reporter: quiet{}}}, rec)
	r.noteDowntime(api.OwnedResult{DowntimeMS: 7})
	r.noteDowntime(api.OwnedResult{})
	if res := r.record().Migration.Result; res.Bytes != 5 || res.DowntimeMS != 7 || rec.Migration.Result.DowntimeMS != 1 {
		t.Errorf("the result is %+v, and what was told before %+v", res, rec.Migration.Result)
	}
}

// quiet hears reports and does nothing.
type quiet struct{}

func (quiet) Report(instance.Migration) {}
