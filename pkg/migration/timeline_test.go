package migration

import (
	"testing"
	"time"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/virt"
)

func look(at time.Duration, remaining uint64) Snapshot {
	return Snapshot{Elapsed: at, Permitted: 150 * time.Millisecond, Job: virt.Job{Memory: instance.Amount{Remaining: remaining}, Throttle: 20}}
}

// A day at half a second a look stays bounded, in order, from the begin to the end.
func TestTimelineIsBounded(t *testing.T) {
	line := timeline{}
	var last time.Duration
	for i := range 2 * 24 * 3600 {
		last = time.Duration(i) * 500 * time.Millisecond
		line = line.add(look(last, 1000), Decision{Action: ActNone})
		if len(line.moments) > keepMoments {
			t.Fatalf("%d moments, at most %d are kept", len(line.moments), keepMoments)
		}
	}
	n := len(line.moments)
	if n < keepMoments/3 || line.moments[0].AtMS != 0 {
		t.Fatalf("%d moments from %d ms on, want the whole of it", n, line.moments[0].AtMS)
	}
	for i := 1; i < n; i++ {
		if line.moments[i].AtMS <= line.moments[i-1].AtMS {
			t.Fatalf("moment %d at %d ms after %d ms", i, line.moments[i].AtMS, line.moments[i-1].AtMS)
		}
	}
	if gap := last - time.Duration(line.moments[n-1].AtMS)*time.Millisecond; gap > line.every {
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
		line = line.add(look(time.Duration(i)*time.Second, 5), d)
	}
	var seen []instance.Moment
	for _, m := range line.moments {
		if m.Action != "" {
			seen = append(seen, m)
		}
	}
	if len(seen) != 2 || seen[0].PermittedMS != 300 || seen[1].Reason != "stalled" || throttled(line.moments) != 20 {
		t.Errorf("decisions kept: %+v, want both", seen)
	}
	crowd := timeline{}
	for i := range 3 * keepMoments {
		crowd = crowd.add(look(time.Duration(i)*time.Second, 5), Decision{Action: ActPause})
	}
	if len(crowd.moments) != keepMoments || crowd.moments[keepMoments-1].AtMS != int64(3*keepMoments-1)*1000 {
		t.Errorf("of decisions alone %d are kept, the last at %d ms", len(crowd.moments), crowd.moments[len(crowd.moments)-1].AtMS)
	}
}

// What was given out is not changed by what comes after it.
func TestTimelineIsAValue(t *testing.T) {
	one := timeline{}.add(look(0, 1), Decision{Action: ActNone})
	given := one.moments
	a, b := one.add(look(time.Second, 2), Decision{Action: ActNone}), one.add(look(time.Second, 3), Decision{Action: ActNone})
	if len(given) != 1 || a.moments[1].RemainingBytes != 2 || b.moments[1].RemainingBytes != 3 {
		t.Errorf("timelines share their moments: %+v, %+v, %+v", given, a.moments, b.moments)
	}
}
