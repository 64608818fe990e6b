// Package crash names the points between the steps of what cannot be undone, so that a test can kill the program at each of them.
//
// In a normal build At does nothing and leaves nothing in the program. Built with the tag crashpoints, it kills its own process
// with SIGKILL at the n-th passage of a point that the environment names.
package crash

// Point is a place in the code where a crash must do no harm.
type Point string

// The points of the control plane.
const (
	KEKMade       Point = "plane-kek-made"        // the key-encryption key is in its file, nothing is sealed under it
	TrustMade     Point = "plane-trust-made"      // the trust domain's root is there, the operator's identity is not
	DirComplete   Point = "plane-first-start"     // all is made; the data directory is not called complete yet
	LogKeyMade    Point = "audit-key-made"        // the log's key is in its file, the log is not begun
	EventsPassed  Point = "event-published"       // JetStream has stored the message, the outbox does not know
	EventsMarked  Point = "event-marked"          // the outbox knows
	EventHandled  Point = "event-handled"         // the consumer has committed, JetStream does not know
	EventAcked    Point = "event-acked"           // JetStream knows
	TilesWritten  Point = "audit-tiles-written"   // the records' bundles and tiles are there, the log's state does not cover them
	Appended      Point = "audit-appended"        // the records are in the log, the process has not noted them
	Indexed       Point = "audit-indexed"         // it has, and may be indexing them; the message is not acknowledged
	Acked         Point = "audit-acked"           // it is
	FeedPublished Point = "audit-feed-published"  // the audit stream has the records, the index does not know
	AgentStored   Point = "deployer-agent-stored" // the agent's key is stored, its SVID is not signed
	SVIDSigned    Point = "deployer-svid-signed"  // it is signed, the agent does not have it
	CSRStored     Point = "deployer-csr-stored"   // the agent does not know
	IssuerAsked   Point = "deployer-issuer-asked" // the issuer has answered, its answer is not stored
	AnswerStored  Point = "deployer-answer-stored"
	ReportStored  Point = "deployer-report-stored" // the agent does not know
	IntentTold    Point = "deployer-intent-told"   // the issuer knows, the intent is not forgotten
	RenewalStored Point = "deployer-renewal-stored"
	Deployed      Point = "deployer-deployment-stored"
	Withdrawn     Point = "deployer-deployment-withdrawn"
	CAMade        Point = "issuer-ca-made"           // keys and certificates of an authority are made, not stored
	CAStored      Point = "issuer-ca-stored"         // stored, nobody knows
	Registered    Point = "issuer-account-made"      // the CA has the account, the issuer has not stored it
	Signed        Point = "issuer-signed"            // a certificate is signed, nothing of it is stored
	RequestStored Point = "issuer-request-stored"    // the deployer does not know
	CAAsked       Point = "issuer-ca-asked"          // with a state: a step at the CA is about to begin
	CAAnswered    Point = "issuer-ca-answered"       // with a state: the CA has answered, nothing is stored
	StepStored    Point = "issuer-step-stored"       // with a state: the step is stored
	ChallengeHere Point = "issuer-challenge-stored"  // what a host says about a challenge is stored, the deployer does not know
	AdviceStored  Point = "issuer-advice-stored"     // the CA's advice is stored
	Revoked       Point = "issuer-revoked"           // the revocation is stored, the operator does not know
	CRLSigned     Point = "issuer-crl-signed"        // a CRL is signed, nothing of it is stored
	CRLStored     Point = "issuer-crl-stored"        // it is stored
	Observed      Point = "inventory-event-recorded" // within the transaction that takes an event in
)

// The points of the agent.
const (
	EnrolKeyMade    Point = "agent-enrol-key-made"
	EnrolGranted    Point = "agent-enrol-granted"   // the SVID is here, not on disk
	EnrolKept       Point = "agent-enrol-kept"      // it is
	RenewKeyMade    Point = "agent-renew-key-made"  //
	RenewGranted    Point = "agent-renew-granted"   // the next SVID is here, not on disk
	RenewKept       Point = "agent-renew-kept"      // it is on disk, the server does not use it yet
	RenewTried      Point = "agent-renew-tried"     // the server uses it, it is not the one in use here
	RenewAdopted    Point = "agent-renew-adopted"   //
	AssignmentKept  Point = "agent-assignment-kept" // what the server assigns, chain included, is on disk
	KeyMade         Point = "agent-key-made"        // key and CSR are on disk
	CSRSent         Point = "agent-csr-sent"        // the server has the CSR
	Begun           Point = "agent-install-begun"   // the journal says so, nothing is touched
	FilesStaged     Point = "agent-files-staged"    // the new files lie beside the old
	StageKept       Point = "agent-stage-kept"      // the journal says so
	OldKept         Point = "agent-old-kept"        // the old files have a second name
	FileSwapped     Point = "agent-file-swapped"    // one more file is the new one
	AllSwapped      Point = "agent-files-swapped"   // all are, the server has not reloaded
	SetInMemory     Point = "agent-haproxy-set"     // HAProxy has been given the new certificate and is not to use it yet
	Reloaded        Point = "agent-reloaded"        // the server was told, the journal does not say so
	ActivateKept    Point = "agent-activated"       // it does
	Verified        Point = "agent-verified"        // the new certificate was seen served
	SettledKept     Point = "agent-settled"         // the journal says so, with the report
	OldDropped      Point = "agent-old-dropped"     // the old files are gone
	FilesBack       Point = "agent-files-back"      // the old files are in place again, the journal does not say so
	ReportKept      Point = "agent-report-kept"     // the report lies in the spool, the journal is still there
	ProgressKept    Point = "agent-progress-kept"
	KeysForgotten   Point = "agent-keys-forgotten"
	JournalClosed   Point = "agent-journal-closed"
	ReportSent      Point = "agent-report-sent"       // the server has the report, the spool does not know
	ReportConfirmed Point = "agent-report-confirmed"  // it does
	ChallengeUp     Point = "agent-challenge-up"      // the answer is being served, the server does not know
	ChallengeTold   Point = "agent-challenge-told"    // it does
	ObservationSent Point = "agent-observation-sent"  // a heartbeat or scan was taken
	Forgotten       Point = "agent-assignment-forgot" // a withdrawn assignment is forgotten, its keys are not yet erased
)

// FirstStart are passed once in the life of a data directory.
var FirstStart = []Point{KEKMade, TrustMade, LogKeyMade, DirComplete}

// Plane are all others of the control plane; those with a state, once for each.
func Plane() []Point {
	all := []Point{EventsPassed, EventsMarked, EventHandled, EventAcked, TilesWritten, Appended, Indexed, Acked, FeedPublished, AgentStored, SVIDSigned, CSRStored,
		IssuerAsked, AnswerStored, ReportStored, IntentTold, RenewalStored, Deployed, Withdrawn, CAMade, CAStored, Registered, Signed, RequestStored,
		ChallengeHere, AdviceStored, Revoked, CRLSigned, CRLStored, Observed}
	for _, state := range []string{"accepted", "ordering", "ordered", "authorized", "finalizing"} {
		for _, p := range []Point{CAAsked, CAAnswered, StepStored} {
			all = append(all, p+"-"+Point(state))
		}
	}
	return all
}

// Enrol are those of an agent's enrolment.
var Enrol = []Point{EnrolKeyMade, EnrolGranted, EnrolKept}

// Agent are all others of the agent.
var Agent = []Point{RenewKeyMade, RenewGranted, RenewKept, RenewTried, RenewAdopted, AssignmentKept, KeyMade, CSRSent, Begun, FilesStaged, StageKept,
	OldKept, FileSwapped, AllSwapped, SetInMemory, Reloaded, ActivateKept, Verified, SettledKept, OldDropped, FilesBack, ReportKept, ProgressKept, KeysForgotten,
	JournalClosed, ReportSent, ReportConfirmed, ChallengeUp, ChallengeTold, ObservationSent, Forgotten}
