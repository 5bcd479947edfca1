-- Made by @mastra/pg 1.27.1, on pgvector 0.8.5; scripts/foreign-tables makes it again.
CREATE EXTENSION IF NOT EXISTS vector;

CREATE TABLE public.notes (
    id integer NOT NULL,
    vector_id text NOT NULL,
    embedding public.vector(8),
    metadata jsonb DEFAULT '{}'::jsonb,
    namespace character varying(255) DEFAULT 'default'::character varying NOT NULL
);

CREATE SEQUENCE public.notes_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE public.notes_id_seq OWNED BY public.notes.id;

ALTER TABLE ONLY public.notes ALTER COLUMN id SET DEFAULT nextval('public.notes_id_seq'::regclass);

INSERT INTO public.notes VALUES (1, '00000001-0000-4000-8000-000000000000', '[0.5,-0.375,-0.625,1,-0.75,-0.375,0.25,0.625]', '{"n": 0, "kind": "bird"}', 'default');
INSERT INTO public.notes VALUES (2, '00000002-0000-4000-8000-000000000000', '[0.25,0.75,-1,-0.25,0.125,-0.125,-0.25,-0.25]', '{"n": 1, "kind": "sea"}', 'default');
INSERT INTO public.notes VALUES (3, '00000003-0000-4000-8000-000000000000', '[-1,-0.875,0.125,0,1,-0.5,0.75,-0.5]', '{"n": 2, "kind": "sky"}', 'default');
INSERT INTO public.notes VALUES (4, '00000004-0000-4000-8000-000000000000', '[-0.75,-0.625,-0.25,-0.625,0.875,0.625,0.625,-0.125]', '{"n": 3, "kind": "sea"}', 'default');
INSERT INTO public.notes VALUES (5, '00000005-0000-4000-8000-000000000000', '[-1,-0.5,-0.125,0.25,-0.125,0.25,-0.25,0.25]', '{"n": 4, "kind": "sea"}', 'default');
INSERT INTO public.notes VALUES (6, '00000001-0000-4000-8000-000000000000', '[0.5,-0.375,-0.625,1,-0.75,-0.375,0.25,0.625]', '{"n": 0, "kind": "bird"}', 'second');
INSERT INTO public.notes VALUES (7, '00000002-0000-4000-8000-000000000000', '[0.25,0.75,-1,-0.25,0.125,-0.125,-0.25,-0.25]', '{"n": 1, "kind": "sea"}', 'second');
INSERT INTO public.notes VALUES (8, '00000003-0000-4000-8000-000000000000', '[-1,-0.875,0.125,0,1,-0.5,0.75,-0.5]', '{"n": 2, "kind": "sky"}', 'second');
INSERT INTO public.notes VALUES (9, '00000004-0000-4000-8000-000000000000', '[-0.75,-0.625,-0.25,-0.625,0.875,0.625,0.625,-0.125]', '{"n": 3, "kind": "sea"}', 'second');
INSERT INTO public.notes VALUES (10, '00000005-0000-4000-8000-000000000000', '[-1,-0.5,-0.125,0.25,-0.125,0.25,-0.25,0.25]', '{"n": 4, "kind": "sea"}', 'second');

SELECT pg_catalog.setval('public.notes_id_seq', 10, true);

ALTER TABLE ONLY public.notes
    ADD CONSTRAINT notes_pkey PRIMARY KEY (id);

CREATE UNIQUE INDEX notes_namespace_vector_id_idx ON public.notes USING btree (namespace, vector_id);

CREATE INDEX notes_vector_idx ON public.notes USING hnsw (embedding public.vector_cosine_ops) WITH (m='8', ef_construction='32');
