package agent

import (
	"time"

	"github.com/compute-agent/compute-agent/pkg/instance"
	"github.com/compute-agent/compute-agent/pkg/migration"
	"github.com/compute-agent/compute-agent/pkg/rpc/api"
	"github.com/compute-agent/compute-agent/pkg/state"
)

// change is one transaction being written. Its methods are called inside commit.
type change struct {
	ledger    *ledger
	tx        *state.Tx
	host      string
	now       time.Time
	puts      []*instance.Instance
	drops     []string
	recs      []*migration.Record
	forgotten []string // keys of records that are removed
	set       *setting
	taken     []string // instances, once for each task that was accepted for them
	left      []string // and for each that ended
	ended     int      // tasks that ended, less those that were removed
	events    []state.OutEvent
	then      []func() // called when it is on disk, before its events are let out
}

// inTx is an instance's record in the transaction that is being written; nil: it
// was removed there.
type inTx map[string]*instance.Instance

func (c *change) instances() inTx {
	m, _ := c.tx.Memo("instances", func() any { return inTx{} }).(inTx)
	return m
}

// putInstance writes an instance's record, with its time of change.
func (c *change) putInstance(i instance.Instance) error {
	i.UpdatedAt = c.now
	c.puts = append(c.puts, &i)
	c.instances()[i.UUID] = &i
	return instanceTable.Put(c.tx, i.UUID, i)
}

// instance gives a record as this transaction sees it: the ledger's copy, which the
// writer brings up to date after each commit, with what this transaction has put.
func (c *change) instance(id string) (instance.Instance, bool) {
	if i, touched := c.instances()[id]; touched {
		if i == nil {
			return instance.Instance{}, false
		}
		return *i, true
	}
	return c.ledger.instance(id)
}

// shared gives a record as the ledger will hold it, or a copy where nothing was put.
func (c *change) shared(i instance.Instance) *instance.Instance {
	if put := c.instances()[i.UUID]; put != nil {
		return put
	}
	return &i
}

// dropInstance removes a record.
func (c *change) dropInstance(id string) error {
	c.drops = append(c.drops, id)
	c.instances()[id] = nil
	return instanceTable.Delete(c.tx, id)
}

// putRecord writes a migration's record with its timeline. Memory has that of a frozen
// one alone: whoever conducts a migration has its own, and who takes it up after a restart
// finds it in the journal.
func (c *change) putRecord(r *migration.Record, line []instance.Moment) error {
	journaled := *r
	journaled.Timeline = line
	if r.Frozen() {
		r = &journaled
	}
	c.recs = append(c.recs, r)
	return migrationTable.Put(c.tx, recordKey(r), journaled)
}

// task reads a task by its request id.
func (c *change) task(id string) (Task, bool, error) {
	if !taskTable.Has(c.tx, id) {
		return Task{}, false, nil
	}
	return taskTable.Get(c.tx, id)
}

// putTask writes a task and, for a cast, the event of its state.
func (c *change) putTask(t Task) error {
	if err := taskTable.Put(c.tx, t.ID, t); err != nil {
		return err
	}
	about := "" // whose view is to be written before the event is told
	if t.State.Ended() {
		about = t.Instance
		c.ended++
		if err := endedTable.Put(c.tx, endedKey(t), t.ID); err != nil {
			return err
		}
	}
	return c.taskEvent(t, about)
}

// taskEvent tells the state of a cast's task.
func (c *change) taskEvent(t Task, about string) error {
	if t.Style != api.Cast {
		return nil
	}
	return c.event(state.OutEvent{Kind: api.EventTask, ID: t.ID, MsgID: t.ID + "/" + string(t.State), Instance: about}, t.event(c.host, c.now))
}

// takenInTx counts the tasks that the transaction that is being written has accepted.
type takenInTx map[string]int

// take notes that a task was accepted for an instance, and tells whether no other is
// open: no task that was accepted before it can still be carried out.
func (c *change) take(id string) (free bool) {
	taken, _ := c.tx.Memo("taken", func() any { return takenInTx{} }).(takenInTx)
	free = taken[id] == 0 && c.ledger.openTasks(id) == 0
	taken[id]++
	c.taken = append(c.taken, id)
	return free
}

// leave notes that a task of an instance that was taken has ended.
func (c *change) leave(id string) { c.left = append(c.left, id) }

// endedKey sorts ended tasks by the time of their end.
func endedKey(t Task) string {
	return endedBefore(t.EndedAt) + t.ID
}

// endedBefore is above every key of a task that ended before t.
func endedBefore(t time.Time) string { return state.SequenceKey(uint64(max(t.UnixNano(), 0))) }

// putSetting writes the host's switch.
func (c *change) putSetting(s setting) error {
	c.set = &s
	return settingTable.Put(c.tx, hostSetting, s)
}

// event puts an event with that body into the outbox.
func (c *change) event(e state.OutEvent, body any) (err error) {
	e.MsgID = c.host + "/" + e.MsgID
	if e, err = state.AppendEvent(c.tx, e, body); err != nil {
		return err
	}
	c.events = append(c.events, e)
	return nil
}

// instanceEvent tells what happened to an instance; without a name nothing did.
func (c *change) instanceEvent(i instance.Instance, name, detail, requestID string) error {
	if name == "" {
		return nil
	}
	return c.event(state.OutEvent{Kind: api.EventInstance, ID: i.UUID, MsgID: instance.NewUUID(), Instance: i.UUID}, api.InstanceEvent{
		Instance: i.UUID, Host: c.host, Event: name, Detail: detail, VMState: i.VMState,
		PowerState: i.PowerState, TaskState: i.TaskState, RequestID: requestID, At: c.now,
	})
}
