// Sends the lines of a file by one of Node's clients, whose name is the argument. The tests of deploy/ say what the environment
// must hold.
import { readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'

const { MILLRACE_URL: url, MILLRACE_KEY: key, LOG_FILE: file, PACE: pace } = process.env
const batch = 4 // records of a request, so that a few records make several requests

// otlp sends by an exporter of OpenTelemetry.
async function otlp (name) {
  const { OTLPLogExporter } = await import(name)
  const { LoggerProvider, BatchLogRecordProcessor } = await import('@opentelemetry/sdk-logs')
  const { SeverityNumber } = await import('@opentelemetry/api-logs')
  const exporter = new OTLPLogExporter({ url: url + '/v1/logs', headers: { Authorization: 'Bearer ' + key } })
  const options = { exporter, maxExportBatchSize: batch, scheduledDelayMillis: 100 }
  const processor = BatchLogRecordProcessor.length > 1
    ? new BatchLogRecordProcessor(exporter, options)
    : new BatchLogRecordProcessor(options)
  const provider = new LoggerProvider({ processors: [processor] })
  const logger = provider.getLogger('lines')
  return {
    send: r => logger.emit({
      timestamp: new Date(r.time), severityNumber: SeverityNumber.INFO, severityText: r.level, body: r.message, attributes: { app: r.app, n: r.n }
    }),
    end: () => provider.shutdown()
  }
}

// winston returns a client that logs to a transport. end waits until the transport has sent all.
async function winston (transport, end) {
  const { createLogger } = (await import('winston')).default
  transport.on('warn', e => console.error('warn', String(e)))
  transport.on('error', e => console.error('error', String(e)))
  const logger = createLogger({ transports: [transport] })
  return { send: ({ level, message, ...rest }) => logger.log(level, message, rest), end }
}

const clients = {
  'otlp-json': () => otlp('@opentelemetry/exporter-logs-otlp-http'),
  'otlp-protobuf': () => otlp('@opentelemetry/exporter-logs-otlp-proto'),

  'pino-elasticsearch': async () => {
    const stream = (await import('pino-elasticsearch')).default({
      node: url, auth: { apiKey: key }, index: 'app', esVersion: 8, opType: 'create', flushBytes: batch * 150, flushInterval: 100
    })
    for (const event of ['unknown', 'insertError', 'error']) stream.on(event, e => console.error(event, String(e), e.document ?? ''))
    const inserted = new Promise(resolve => { stream.on('insert', resolve).on('error', resolve) })
    return { send: r => stream.write(JSON.stringify(r) + '\n'), end: () => { stream.end(); return inserted } }
  },

  'pino-loki': async () => {
    const { default: pino } = await import('pino')
    const { pinoLoki } = await import('pino-loki')
    const stream = pinoLoki({ host: url, basicAuth: { username: 'x', password: key }, batching: { interval: 0.1 }, labels: { source: 'pino' } })
    const logger = pino({ timestamp: false, base: null, messageKey: 'message' }, stream)
    return { send: ({ level, message, time, ...rest }) => logger.info({ ...rest, time: Date.parse(time) }, message), end: () => new Promise(resolve => { stream.end(); stream.on('close', resolve) }) }
  },

  'winston-elasticsearch': async () => {
    const { ElasticsearchTransport } = await import('winston-elasticsearch')
    const transport = new ElasticsearchTransport({
      clientOpts: { node: url, auth: { apiKey: key } }, index: 'app', flushInterval: 100, retryLimit: 1000,
      transformer: ({ level, message, meta }) => ({ '@timestamp': meta.time, level, message, app: meta.app, n: meta.n })
    })
    const writer = transport.bulkWriter
    // It stops running while it waits for the server, with records in hand.
    return winston(transport, async () => { while (writer.running || writer.bulk.length > 0 || !writer.esConnection) await sleep(50) })
  },

  'winston-loki': async () => {
    const { default: LokiTransport } = await import('winston-loki')
    const { format } = (await import('winston')).default
    const transport = new LokiTransport({
      host: url, basicAuth: 'x:' + key, json: true, interval: 0.2, labels: { source: 'winston' }, replaceTimestamp: false, format: format.json(),
      onConnectionError: e => console.error('no connection', String(e))
    })
    return winston(transport, async () => { do { await transport.flush(); await sleep(100) } while (transport.batcher.batch.streams.length > 0) })
  },

  'winston-http': async () => {
    const { transports } = (await import('winston')).default
    const to = new URL(url)
    const transport = new transports.Http({
      host: to.hostname, port: to.port, path: '/log?ok=200', headers: { Authorization: 'Bearer ' + key }
    })
    let answered = 0
    transport.on('logged', () => answered++).on('warn', () => answered++)
    let sent = 0
    const client = await winston(transport, async () => { while (answered < sent) await sleep(50) })
    return { send: r => { sent++; client.send(r) }, end: client.end }
  },

  'splunk-logging': async () => {
    const { Logger } = (await import('splunk-logging')).default
    const logger = new Logger({ token: key, url, maxRetries: 20, maxBatchCount: 0 })
    logger.eventFormatter = record => record
    logger.error = e => console.error('error', String(e))
    const flushed = []
    const flush = () => { if (logger.serializedContextQueue.length) flushed.push(new Promise(resolve => logger.flush(resolve))) }
    return {
      send: r => {
        logger.send({ message: r, metadata: { time: Date.parse(r.time) / 1000 } })
        if (logger.serializedContextQueue.length === batch) flush()
      },
      end: () => { flush(); return Promise.all(flushed) }
    }
  }
}

const client = await clients[process.argv[2]]()
for (const line of readFileSync(file, 'utf8').trimEnd().split('\n')) {
  client.send(JSON.parse(line))
  await sleep(parseFloat(pace))
}
await client.end()
process.exit(0) // some clients have timers that never end
