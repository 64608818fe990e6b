package progress

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func deployment(state deployerv1.DeploymentState, as ...*deployerv1.AssignmentStatus) *deployerv1.Deployment {
	d := &deployerv1.Deployment{Name: "shop", Status: &deployerv1.DeploymentStatus{State: state, Assignments: as}}
	for range as {
		d.Targets = append(d.Targets, &deployerv1.Target{})
	}
	return d
}

func on(host string, state deployerv1.AssignmentState) *deployerv1.AssignmentStatus {
	return &deployerv1.AssignmentStatus{
		Id: host, State: state, Generation: 1, Attempt: 1, Target: &deployerv1.Target{Host: host, Name: "nginx"},
		Fingerprint: strings.Repeat("ab", 32), Served: strings.Repeat("ab", 32), Address: "127.0.0.1:443",
		NotAfter: timestamppb.New(noon.Add(90 * 24 * time.Hour)),
	}
}

func steps() []*deployerv1.Deployment {
	failed := on("web-2", deployerv1.AssignmentState_ASSIGNMENT_STATE_FAILED)
	failed.Reason, failed.Message = "RELOAD_FAILED", "nginx: \x1b[31mbad"
	progressing := deployerv1.DeploymentState_DEPLOYMENT_STATE_PROGRESSING
	return []*deployerv1.Deployment{
		deployment(progressing, on("web-1", deployerv1.AssignmentState_ASSIGNMENT_STATE_ASSIGNED), on("web-2", deployerv1.AssignmentState_ASSIGNMENT_STATE_PLANNED)),
		deployment(progressing, on("web-1", deployerv1.AssignmentState_ASSIGNMENT_STATE_ASSIGNED), on("web-2", deployerv1.AssignmentState_ASSIGNMENT_STATE_PLANNED)),
		deployment(progressing, on("web-1", deployerv1.AssignmentState_ASSIGNMENT_STATE_SERVED), on("web-2", deployerv1.AssignmentState_ASSIGNMENT_STATE_ISSUED)),
		deployment(deployerv1.DeploymentState_DEPLOYMENT_STATE_FAILED, on("web-1", deployerv1.AssignmentState_ASSIGNMENT_STATE_SERVED), failed),
	}
}

func TestLines(t *testing.T) {
	var b bytes.Buffer
	v := New(Config{Out: &b, Now: func() time.Time { return noon }})
	for _, d := range steps() {
		if err := v.Show(d); err != nil {
			t.Fatal(err)
		}
	}
	want := `12:00:00  web-1/nginx  assigned
12:00:00  web-2/nginx  planned
12:00:00  deployment/shop  progressing  0/2 served
12:00:00  web-1/nginx  served  abababababababab at 127.0.0.1:443 until 2027-02-19 12:00Z
12:00:00  web-2/nginx  issued  abababababababab until 2027-02-19 12:00Z
12:00:00  deployment/shop  progressing  1/2 served
12:00:00  web-2/nginx  failed  attempt 1: nginx: \x1b[31mbad (RELOAD_FAILED)
12:00:00  deployment/shop  failed  1/2 served
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}

func TestLiveBlockIsDrawnOver(t *testing.T) {
	var b bytes.Buffer
	v := New(Config{Out: &b, Live: true, Colour: true, Width: func() int { return 40 }, Now: func() time.Time { return noon }})
	for _, d := range steps()[2:] {
		if err := v.Show(d); err != nil {
			t.Fatal(err)
		}
	}
	want := "deployment/shop  progressing  1/2 served\n" +
		"  web-1/nginx  \x1b[32mserved\x1b[0m  abababababababab \x1b[0m\n" +
		"  web-2/nginx  issued  abababababababab \x1b[0m\n" +
		"\x1b[3A\x1b[J" +
		"deployment/shop  \x1b[31mfailed\x1b[0m  1/2 served\n" +
		"  web-1/nginx  \x1b[32mserved\x1b[0m  abababababababab \x1b[0m\n" +
		"  web-2/nginx  \x1b[31mfailed\x1b[0m  attempt 1: nginx:\x1b[0m\n"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}
