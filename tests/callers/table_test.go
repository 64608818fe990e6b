// Package callers holds who may call what, as one table that stands alone: nothing of it is taken from the product. Against a
// real `sallyport serve`, and against the four daemons, it makes every call there is as every kind of caller, and then wants each refusal in the audit log,
// once. What an agent may do with what is another's, or with what is over, is here too.
package callers

import (
	"strings"

	"google.golang.org/grpc/codes"
)

// callers are the columns of the table.
var callers = []string{
	// Whom the trust domain does not know.
	"nobody",  // shows no certificate
	"foreign", // an operator of another trust domain
	"forged",  // an operator of a trust domain of the same name, with another root
	"expired", // an operator whose certificate has ended
	"broker",  // service/nats: of the trust domain, and of no role
	// Agents. Whatever belongs to a host belongs to alpha.
	"alpha",
	"beta",
	"locked",
	"removed",
	"rekeyed", // with the key that it had before it renewed
	// The other roles.
	"operator",
	"inventory",
	"issuer",
	"deployer",
	"audit",
}

// answer is what a letter of the table stands for. It is refused for who the caller is, unless code is OK.
type answer struct {
	code   codes.Code
	reason string
	// record is the reason in the audit record, where it is not the one that the caller sees.
	record string
}

var answers = map[rune]answer{
	'+': {code: codes.OK}, // let in; what is made of the request is another matter
	'N': {code: codes.Unauthenticated, reason: "NO_CERTIFICATE"},
	'C': {code: codes.Unauthenticated, reason: "CERTIFICATE_INVALID"},
	'X': {code: codes.Unauthenticated, reason: "CERTIFICATE_EXPIRED"},
	'W': {code: codes.Unauthenticated, reason: "UNKNOWN_IDENTITY"},
	'R': {code: codes.PermissionDenied, reason: "ROLE_NOT_ALLOWED"},
	'L': {code: codes.PermissionDenied, reason: "AGENT_LOCKED"},
	'G': {code: codes.PermissionDenied, reason: "AGENT_UNKNOWN"},
	'K': {code: codes.PermissionDenied, reason: "KEY_UNKNOWN"},
	// What is another host's does not exist for an agent; an auditor sees the attempt.
	'A': {code: codes.NotFound, reason: "ASSIGNMENT_NOT_FOUND", record: "of another host"},
	'H': {code: codes.NotFound, reason: "CHALLENGE_NOT_FOUND", record: "of another host"},
}

// table has a row for each method there is: a letter for each caller, in their order.
var table = map[string]string{
	"sallyport.agent.v1.AgentService/Enroll":            "+CCXW ++LGK +++++",
	"sallyport.agent.v1.AgentService/Return":            "+CCXW ++LGK +++++",
	"sallyport.agent.v1.AgentService/RenewIdentity":     "NCCXW ++LGK RRRRR",
	"sallyport.agent.v1.AgentService/Subscribe":         "NCCXW ++LGK RRRRR",
	"sallyport.agent.v1.AgentService/SubmitCSR":         "NCCXW +ALGK RRRRR",
	"sallyport.agent.v1.AgentService/ReportAssignment":  "NCCXW +ALGK RRRRR",
	"sallyport.agent.v1.AgentService/ReportChallenge":   "NCCXW +HLGK RRRRR",
	"sallyport.agent.v1.AgentService/ReportObservation": "NCCXW ++LGK RRRRR",

	"sallyport.audit.v1.AuditService/ListRecords":         "NCCXW RRLGK +RRRR",
	"sallyport.audit.v1.AuditService/GetRecord":           "NCCXW RRLGK +RRRR",
	"sallyport.audit.v1.AuditService/TailRecords":         "NCCXW RRLGK +RRRR",
	"sallyport.audit.v1.AuditService/ExportRecords":       "NCCXW RRLGK +RRRR",
	"sallyport.audit.v1.AuditService/GetCheckpoint":       "NCCXW RRLGK +RRRR",
	"sallyport.audit.v1.AuditService/GetConsistencyProof": "NCCXW RRLGK +RRRR",
	"sallyport.audit.v1.AuditService/CheckStore":          "NCCXW RRLGK +RRRR",
	"sallyport.audit.v1.AuditService/FindEvents":          "NCCXW RRLGK +RRRR",

	"sallyport.deployer.v1.DeployerService/ApplyDeployment":  "NCCXW RRLGK +RRRR",
	"sallyport.deployer.v1.DeployerService/GetDeployment":    "NCCXW RRLGK +RRRR",
	"sallyport.deployer.v1.DeployerService/ListDeployments":  "NCCXW RRLGK +RRRR",
	"sallyport.deployer.v1.DeployerService/DeleteDeployment": "NCCXW RRLGK +RRRR",
	"sallyport.deployer.v1.DeployerService/RenewDeployment":  "NCCXW RRLGK +RRRR",
	"sallyport.deployer.v1.DeployerService/WatchDeployment":  "NCCXW RRLGK +RRRR",
	"sallyport.deployer.v1.DeployerService/ListAssignments":  "NCCXW RRLGK +RRRR",
	"sallyport.deployer.v1.DeployerService/CreateJoinToken":  "NCCXW RRLGK +RRRR",
	"sallyport.deployer.v1.DeployerService/ListJoinTokens":   "NCCXW RRLGK +RRRR",
	"sallyport.deployer.v1.DeployerService/RevokeJoinToken":  "NCCXW RRLGK +RRRR",
	"sallyport.deployer.v1.DeployerService/GetAgent":         "NCCXW RRLGK +RRRR",
	"sallyport.deployer.v1.DeployerService/ListAgents":       "NCCXW RRLGK +RRRR",
	"sallyport.deployer.v1.DeployerService/LockAgent":        "NCCXW RRLGK +RRRR",
	"sallyport.deployer.v1.DeployerService/UnlockAgent":      "NCCXW RRLGK +RRRR",
	"sallyport.deployer.v1.DeployerService/RemoveAgent":      "NCCXW RRLGK +RRRR",
	"sallyport.deployer.v1.DeployerService/CheckStore":       "NCCXW RRLGK +RRRR",

	"sallyport.inventory.v1.InventoryService/ApplyIdentity":    "NCCXW RRLGK +RRRR",
	"sallyport.inventory.v1.InventoryService/GetIdentity":      "NCCXW RRLGK +R++R",
	"sallyport.inventory.v1.InventoryService/ListIdentities":   "NCCXW RRLGK +RRRR",
	"sallyport.inventory.v1.InventoryService/DeleteIdentity":   "NCCXW RRLGK +RRRR",
	"sallyport.inventory.v1.InventoryService/GetCertificate":   "NCCXW RRLGK +RRRR",
	"sallyport.inventory.v1.InventoryService/ListCertificates": "NCCXW RRLGK +RRRR",
	"sallyport.inventory.v1.InventoryService/GetHost":          "NCCXW RRLGK +RRRR",
	"sallyport.inventory.v1.InventoryService/ListHosts":        "NCCXW RRLGK +RRRR",
	"sallyport.inventory.v1.InventoryService/ListFindings":     "NCCXW RRLGK +RRRR",
	"sallyport.inventory.v1.InventoryService/CheckStore":       "NCCXW RRLGK +RRRR",

	"sallyport.issuer.v1.IssuerService/ApplyAuthority":    "NCCXW RRLGK +RRRR",
	"sallyport.issuer.v1.IssuerService/GetAuthority":      "NCCXW RRLGK ++R+R",
	"sallyport.issuer.v1.IssuerService/ListAuthorities":   "NCCXW RRLGK +RRRR",
	"sallyport.issuer.v1.IssuerService/DeleteAuthority":   "NCCXW RRLGK +RRRR",
	"sallyport.issuer.v1.IssuerService/ApplyProfile":      "NCCXW RRLGK +RRRR",
	"sallyport.issuer.v1.IssuerService/GetProfile":        "NCCXW RRLGK +RR+R",
	"sallyport.issuer.v1.IssuerService/ListProfiles":      "NCCXW RRLGK +RRRR",
	"sallyport.issuer.v1.IssuerService/DeleteProfile":     "NCCXW RRLGK +RRRR",
	"sallyport.issuer.v1.IssuerService/SubmitRequest":     "NCCXW RRLGK +RR+R",
	"sallyport.issuer.v1.IssuerService/GetRequest":        "NCCXW RRLGK +RR+R",
	"sallyport.issuer.v1.IssuerService/ListRequests":      "NCCXW RRLGK +RRRR",
	"sallyport.issuer.v1.IssuerService/CancelRequest":     "NCCXW RRLGK +RR+R",
	"sallyport.issuer.v1.IssuerService/ReportChallenge":   "NCCXW RRLGK RRR+R",
	"sallyport.issuer.v1.IssuerService/RevokeCertificate": "NCCXW RRLGK +RRRR",
	"sallyport.issuer.v1.IssuerService/GetRevocationList": "NCCXW RRLGK +RRRR",
	"sallyport.issuer.v1.IssuerService/CheckStore":        "NCCXW RRLGK +RRRR",

	// Of every server. Check is for load balancers; the rest tells about the inside.
	"grpc.health.v1.Health/Check":                                   "+CCXW ++LGK +++++",
	"grpc.health.v1.Health/List":                                    "NCCXW RRLGK +++++",
	"grpc.health.v1.Health/Watch":                                   "NCCXW RRLGK +++++",
	"grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      "NCCXW RRLGK +++++",
	"grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": "NCCXW RRLGK +++++",
}

// recorders names the service whose record a refusal is, by the API's service. What every server has is recorded
// by that server; serve has one, and the deployer's record.
var recorders = map[string]string{
	"sallyport.agent.v1.AgentService":          "deployer",
	"sallyport.audit.v1.AuditService":          "audit",
	"sallyport.deployer.v1.DeployerService":    "deployer",
	"sallyport.inventory.v1.InventoryService":  "inventory",
	"sallyport.issuer.v1.IssuerService":        "issuer",
	"grpc.health.v1.Health":                    "deployer",
	"grpc.reflection.v1.ServerReflection":      "deployer",
	"grpc.reflection.v1alpha.ServerReflection": "deployer",
}

// recorder is the service whose record a refusal of the method is.
func recorder(method string) string {
	api, _, _ := strings.Cut(method, "/")
	return recorders[api]
}
