// What a record says about itself, under the names that are usual: its level, its message, and what it shares with others.
import { isObject } from './json.js';
import * as language from './language.js';
import { resolve } from './time.js';

// The fields of a level, by how sure it is one: those of loggers, OpenTelemetry, GELF, Serilog, GCP, journald, PostgreSQL, MongoDB.
export const levelFields = ['level', 'severity', 'lvl', 'loglevel', 'log_level', 'severity_text', 'severityText', 'Level', 'log.level',
  'levelname', '@l', 'error_severity', 'jsonPayload.level', 'fields.level', 'PRIORITY', 's'];

// The fields of a message, those of query/patterns.go in their order: a test compares them.
const messageFields = ['message', 'msg', 'Message', 'MESSAGE', 'short_message', 'body', 'log', 'event', 'text', 'Content', '@m', '@mt', 'textPayload',
  'jsonPayload.message', 'fields.message', 'error.message', 'error', 'title'];

// What records have in common with those that belong to them.
const kinship = {
  trace: ['trace_id', 'traceId', 'traceID', 'trace.id', 'trace', 'request_id', 'requestId', 'req_id', 'correlation_id'],
  service: ['service', 'service.name', 'service_name', 'app', 'application', 'resource.service.name', 'resource.attributes.service.name',
    'appname', 'SYSLOG_IDENTIFIER', 'logger', 'unit'],
  host: ['host', 'hostname', 'host.name', 'HOSTNAME', '_HOSTNAME', 'k8s.pod.name', 'kubernetes.pod_name', 'pod', 'node', 'instance'],
};

// order is also that of the chart's layers from the bottom up: what matters most has the common baseline.
export const order = ['fatal', 'error', 'warn', 'info', 'debug', 'trace'];

const names = {
  fatal: /^(fatal|crit(ical)?|panic|emerg(ency)?|alert|f)$/i,
  error: /^(err(or)?|severe|failure|e)$/i,
  warn: /^(warn(ing)?|w)$/i,
  info: /^(info(rmation(al)?)?|notice|log|ok|success|i)$/i,
  debug: /^(debug|fine|d[1-5]?)$/i,
  trace: /^(trace|verbose|silly|finest|finer)$/i,
};
const numbers = [[60, 'fatal'], [50, 'error'], [40, 'warn'], [30, 'info'], [20, 'debug'], [10, 'trace']]; // pino, bunyan
const syslog = ['fatal', 'fatal', 'fatal', 'error', 'warn', 'info', 'info', 'debug']; // RFC 5424, section 6.2.1

// known returns the level that a value stands for, or ''.
export function known(value) {
  const text = String(value);
  const n = /^\d+$/.test(text) ? Number(text) : NaN;
  if (n < 8) return syslog[n];
  if (n >= 10 && n < 70) return numbers.find(([least]) => n >= least)[1];
  return order.find((level) => names[level].test(text)) ?? '';
}

// member returns the member of a record that names lead to. Several of them may be one name with dots, which wins.
export function member(data, names) {
  if (!isObject(data)) return undefined;
  for (let n = names.length; n > 0; n--) {
    const key = names.slice(0, n).join('.');
    if (!Object.hasOwn(data, key)) continue;
    const found = n === names.length ? data[key] : member(data[key], names.slice(n));
    if (found !== undefined) return found;
  }
  return undefined;
}

const dotted = (data, field) => member(data, field.split('.'));

const firstOf = (data, fields) => fields.find((field) => {
  const value = dotted(data, field);
  return value != null && value !== '' && !isObject(value);
});

// describe returns {level, levelText, message, used}: used are the fields that said so.
export function describe(data) {
  const levelField = firstOf(data, levelFields.filter((field) => field !== 's' || known(dotted(data, field)))); // s is MongoDB's, and a name of much else
  const messageField = firstOf(data, messageFields.filter((field) => field !== levelField));
  const levelText = levelField ? String(dotted(data, levelField)) : '';
  return {
    level: known(levelText),
    levelText,
    message: messageField ? String(dotted(data, messageField)) : '',
    used: [levelField, messageField],
  };
}

// timeField returns the field at a record's top that holds the time which its row begins with, '' if there is none.
export function timeField(data, time) {
  const at = Date.parse(time);
  return Object.keys(data).find((key) => /time|date|^@?ts?$/i.test(key) && resolve(String(data[key])) === at) ?? '';
}

// cell returns what a column shows of a record: a member, and where there is none under such a name its level or message.
export function cell(data, path) {
  const value = member(data, language.names(path));
  if (value !== undefined) return value;
  if (path === 'message') return describe(data).message || undefined;
  if (path === 'level') return describe(data).levelText || undefined;
  return undefined;
}

// kin returns what a record shares with others: {name, condition, text}, by name trace, service, host.
export const kin = (data) => Object.entries(kinship).map(([name, fields]) => {
  const field = firstOf(data, fields);
  const value = field && dotted(data, field);
  return field && { name, text: String(value), condition: `${field}:${language.literal(typeof value === 'string' ? value : String(value))}` };
}).filter((found) => found && language.fits(found.condition));
